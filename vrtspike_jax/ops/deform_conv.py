"""Modulated deformable 3x3 convolution (DCNv2), as `torchvision.ops.deform_conv2d` defines it.

Written as a sampler that fills the columns of an im2col matrix, followed by one matrix product.
The sampler is where the time goes, so it is the part that has several implementations.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

TAPS = 9


def sample_columns(
    x: Float[Array, "n h w c"],
    offset: Float[Array, "n h w g 9 2"],
    mask: Float[Array, "n h w g 9"],
) -> Float[Array, "n h w 9 c"]:
    """Bilinear samples of `x` under each tap, times the mask: the reference implementation.

    Channels are split into G consecutive groups that share an offset. Outside the image is zero.
    """
    n, h, w, c = x.shape
    groups = offset.shape[3]
    # Groups go last so that samples land in channel order without a transpose.
    offset = jnp.swapaxes(offset.astype(jnp.float32), 3, 4)
    mask = jnp.swapaxes(mask.astype(jnp.float32), 3, 4)[..., None]
    tap = jnp.arange(TAPS, dtype=jnp.float32)[:, None]
    row = offset[..., 0] + (tap // 3 - 1) + jnp.arange(h, dtype=jnp.float32)[:, None, None, None]
    column = offset[..., 1] + (tap % 3 - 1) + jnp.arange(w, dtype=jnp.float32)[:, None, None]
    top, left = jnp.floor(row), jnp.floor(column)
    down, across = row - top, column - left

    pixels = x.reshape(n * h * w * groups, c // groups)
    image = jnp.arange(n).reshape(n, 1, 1, 1, 1)
    group = jnp.arange(groups)

    def corner(r, c, weight):
        inside = (r >= 0) & (r <= h - 1) & (c >= 0) & (c <= w - 1)
        r = jnp.clip(r, 0, h - 1).astype(jnp.int32)
        c = jnp.clip(c, 0, w - 1).astype(jnp.int32)
        index = ((image * h + r) * w + c) * groups + group
        values = pixels.at[index].get(mode="promise_in_bounds")
        return jnp.where(inside, weight, 0)[..., None] * values

    samples = (
        corner(top, left, (1 - down) * (1 - across))
        + corner(top, left + 1, (1 - down) * across)
        + corner(top + 1, left, down * (1 - across))
        + corner(top + 1, left + 1, down * across)
    )
    return (mask * samples).astype(x.dtype).reshape(n, h, w, TAPS, c)


def deform_conv2d(
    x: Float[Array, "n h w c_in"],
    offset: Float[Array, "n h w g 9 2"],
    mask: Float[Array, "n h w g 9"],
    weight: Float[Array, "3 3 c_in_per_group c_out"],
    bias: Float[Array, " c_out"] | None = None,
) -> Float[Array, "n h w c_out"]:
    """Modulated deformable convolution: kernel 3, stride 1, padding 1.

    Args:
        x: Input features. Channels form G deformable groups and, independently of them,
            c_in / c_in_per_group convolution groups.
        offset: Displacement (dy, dx) in pixels of each tap, in float32.
        mask: Modulation of each tap.
        weight: Filter; taps in row-major order.
        bias: Optional, added to the output.

    Returns:
        Features in x's dtype.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    n, h, w, c_in = x.shape
    c_in_per_group, c_out = weight.shape[2:]
    groups, remainder = divmod(c_in, c_in_per_group)
    deformable = offset.shape[3]
    if weight.shape[:2] != (3, 3) or remainder or c_out % groups or c_in % deformable:
        raise ValueError(
            f"deform_conv2d: input has {c_in} channels, offsets {deformable} groups; "
            f"weight {weight.shape} does not fit"
        )
    if offset.shape != (n, h, w, deformable, TAPS, 2) or mask.shape != offset.shape[:-1]:
        raise ValueError(
            f"deform_conv2d: offset {offset.shape} and mask {mask.shape}, want "
            f"{(n, h, w, deformable, TAPS, 2)} and {(n, h, w, deformable, TAPS)}"
        )
    columns = sample_columns(x, offset, mask)
    weight = weight.astype(x.dtype)
    if groups == 1:
        out = jnp.einsum("nhwkc,kcd->nhwd", columns, weight.reshape(TAPS, c_in, c_out))
    else:
        columns = columns.reshape(n, h, w, TAPS, groups, c_in_per_group)
        weight = weight.reshape(TAPS, c_in_per_group, groups, c_out // groups)
        out = jnp.einsum("nhwkgc,kcgd->nhwgd", columns, weight).reshape(n, h, w, c_out)
    return out if bias is None else out + bias.astype(x.dtype)
