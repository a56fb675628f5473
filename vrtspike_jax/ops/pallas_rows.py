"""What Triton kernels over rows of channels share: tiles of rows, cut into pieces of channels.

Triton wants powers of two, so channels are cut into pieces: 96 is 64 + 32.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from vrtspike_jax.ops.layer_norm import EPSILON

Piece = tuple[Any, int, Any]  # Start, width (a power of two), how many of it are valid.


def pieces(size: int, largest: int) -> list[tuple[int, int, int]]:
    """Cuts an axis into (start, width, valid): widths are powers of two, at least 16."""
    found, start = [], 0
    while start < size:
        left = size - start
        width = min(largest, 1 << (left.bit_length() - 1))
        if width < 16 or (left - width < 8 and left != width):
            width = max(16, pl.next_power_of_2(left))
        valid = min(width, left)
        found.append((start, width, valid))
        start += valid
    return found


def inside(piece: Piece) -> Array | None:
    """Mask of a piece's valid part; None where that is the whole of it."""
    _, width, valid = piece
    if isinstance(valid, int) and valid == width:
        return None
    return lax.iota(jnp.int32, width) < valid


def _mask(shape: tuple[int, int], rows: Array | None, columns: Array | None) -> Array | None:
    """Mask of an array's valid rows and columns; None stands for all of them."""
    mask = None
    for part, axis in ((columns, 1), (rows, 0)):
        if part is not None:
            part = lax.broadcast_in_dim(part, shape, (axis,))
            mask = part if mask is None else mask & part
    return mask


class Tile:
    """Some rows, and how to read and write their pieces.

    Args:
        plan: Has `rows` in all, the `block` of a tile, `rows_per_sample`, and whether the grid is
            `ragged`: reaches past the last row.
        index: Which tile.
    """

    def __init__(self, plan: Any, index: Array):
        self.plan, self.index = plan, index
        self.rows = lax.add(lax.mul(index, plan.block), lax.iota(jnp.int32, plan.block))
        self.valid = self.rows < plan.rows if plan.ragged else None

    def _address(self, ref: Any, piece: Piece, offset: int = 0) -> tuple[Any, Array | None]:
        start, width, _ = piece
        mask = _mask((self.plan.block, width), self.valid, inside(piece))
        column = offset + start + lax.broadcasted_iota(jnp.int32, (1, width), 1)
        return ref.at[lax.expand_dims(self.rows, (1,)), column], mask

    def load(self, ref: Any, piece: Piece) -> Array:
        address, mask = self._address(ref, piece)
        return plgpu.load(address, mask=mask, other=None if mask is None else 0)

    def store(self, ref: Any, piece: Piece, value: Array, offset: int = 0) -> None:
        address, mask = self._address(ref, piece, offset)
        plgpu.store(address, value.astype(ref.dtype), mask=mask)

    def branch_scale(self, ref: Any) -> Float[Array, "block 1"]:
        sample = lax.div(self.rows, jnp.int32(self.plan.rows_per_sample))
        other = None if self.valid is None else 0
        scale = plgpu.load(ref.at[sample], mask=self.valid, other=other)
        return lax.expand_dims(scale, (1,))


def vector(ref: Any, piece: Piece) -> Float[Array, "1 width"]:
    """A piece of a vector over the channels."""
    mask = inside(piece)
    column = piece[0] + lax.iota(jnp.int32, piece[1])
    loaded = plgpu.load(ref.at[column], mask=mask, other=None if mask is None else 0)
    return lax.expand_dims(loaded, (0,))


def matrix(ref: Any, rows: Piece, columns: Piece) -> Float[Array, "rows columns"]:
    """A piece of a matrix, zero where it is not valid."""
    row, column = (
        start + jnp.arange(width, dtype=jnp.int32) for start, width, _ in (rows, columns)
    )
    mask = _mask((rows[1], columns[1]), inside(rows), inside(columns))
    address = ref.at[row[:, None], column[None]]
    return plgpu.load(address, mask=mask, other=None if mask is None else 0)


def dot(a: Array, b: Array) -> Array:
    """Matrix product, in float32."""
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def side_by_side(first: Array, second: Array) -> Float[Array, "block twice"]:
    """Two arrays of a shape, joined along their columns, which Triton cannot concatenate."""
    return jnp.stack([first, second], axis=2).transpose(0, 2, 1).reshape(first.shape[0], -1)


def turns(tiles: int, programs: int) -> Array:
    """How many tiles this program walks over, where programs take turns."""
    return lax.div(tiles - pl.program_id(0) + programs - 1, programs)


def row_mean(values: list[Array], channels: int) -> Float[Array, "block 1"]:
    """Mean over the channels, of pieces that are zero where they are not valid."""
    return sum(jnp.sum(v, axis=1, keepdims=True) for v in values) * (1 / channels)


def moments(
    x: list[Float[Array, "block width"]], cut: list[Piece], channels: int
) -> tuple[Float[Array, "block 1"], Float[Array, "block 1"]]:
    """Mean of rows, and 1 / deviation."""
    mean = row_mean(x, channels)
    square = row_mean([p * p for p in _centre(x, cut, mean)], channels)
    return mean, lax.rsqrt(square + EPSILON)


def rescale(
    x: list[Float[Array, "block width"]],
    cut: list[Piece],
    mean: Float[Array, "block 1"],
    inverse: Float[Array, "block 1"],
) -> list[Float[Array, "block width"]]:
    """Rows with mean 0 and deviation 1, zero where a piece is not valid, given their moments."""
    return [p * inverse for p in _centre(x, cut, mean)]


def standardise(
    x: list[Float[Array, "block width"]], cut: list[Piece], channels: int
) -> tuple[list[Float[Array, "block width"]], Float[Array, "block 1"]]:
    """Rows with mean 0 and deviation 1, zero where a piece is not valid; and 1 / deviation."""
    mean, inverse = moments(x, cut, channels)
    return rescale(x, cut, mean, inverse), inverse


def _centre(x: list[Array], cut: list[Piece], mean: Array) -> list[Array]:
    centred = []
    for p, (_, width, valid) in zip(x, cut, strict=True):
        within = lax.broadcasted_iota(jnp.int32, (1, width), 1) < valid
        centred.append(p - mean if valid == width else jnp.where(within, p - mean, 0))
    return centred


def standardise_gradient(
    g: list[Float[Array, "block width"]],
    normed: list[Float[Array, "block width"]],
    inverse: Float[Array, "block 1"],
    channels: int,
) -> list[Float[Array, "block width"]]:
    """Gradient of `standardise`'s rows, given that of its first result, `normed`."""
    mean = row_mean(g, channels)
    slope = row_mean([a * n for a, n in zip(g, normed, strict=True)], channels)
    return [(a - mean - n * slope) * inverse for a, n in zip(g, normed, strict=True)]
