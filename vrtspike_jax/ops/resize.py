"""Bilinear resizing in PyTorch's two conventions, as products with small dense matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.lru_cache(maxsize=64)
def _weights(size_in: int, size_out: int, align_corners: bool) -> np.ndarray:
    """Interpolation matrix (size_out, size_in) of one axis; rows sum to one."""
    out = np.arange(size_out, dtype=np.float64)
    if align_corners:
        position = out * ((size_in - 1) / max(size_out - 1, 1))
    else:
        position = np.clip((out + 0.5) * (size_in / size_out) - 0.5, 0, None)
    low = np.minimum(position.astype(np.int64), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    fraction = np.clip(position - low, 0, 1)
    matrix = np.zeros((size_out, size_in))
    rows = np.arange(size_out)
    np.add.at(matrix, (rows, low), 1 - fraction)
    np.add.at(matrix, (rows, high), fraction)
    return matrix.astype(np.float32)


def _resize(x: Array, height: int, width: int, align_corners: bool) -> Array:
    if x.shape[1:3] == (height, width):
        return x
    rows = jnp.asarray(_weights(x.shape[1], height, align_corners))
    columns = jnp.asarray(_weights(x.shape[2], width, align_corners))
    y = jnp.einsum(
        "nhwc,yh->nywc", x.astype(jnp.float32), rows, precision=jax.lax.Precision.HIGHEST
    )
    y = jnp.einsum("nywc,xw->nyxc", y, columns, precision=jax.lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def resize_bilinear(
    x: Float[Array, "n h w c"], height: int, width: int
) -> Float[Array, "n {height} {width} c"]:
    """Resizes with half-pixel centres, without antialiasing (`align_corners=False`)."""
    return _resize(x, height, width, align_corners=False)


def resize_align_corners(
    x: Float[Array, "n h w c"], height: int, width: int
) -> Float[Array, "n {height} {width} c"]:
    """Resizes so that the corner pixels' centres coincide (`align_corners=True`)."""
    return _resize(x, height, width, align_corners=True)
