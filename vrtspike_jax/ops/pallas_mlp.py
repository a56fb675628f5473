"""A pre-norm gated feed-forward block as Triton kernels.

With n = LayerNorm(x), a = n W11 + b11, c = n W12 + b12, h = gelu(a) * c, the block is
y = x + s (h W2 + b2), where s is one number for each sample (stochastic depth). The forward
kernel reads x and writes y. The backward pass has one kernel too, which rebuilds a and c from x and
writes the operands of plain matrix products: n, h, and the gradients of a and c side by side.
A second one, after the product that makes n's gradient, is LayerNorm's (`pallas_norm`).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from vrtspike_jax.ops import pallas_norm, pallas_rows
from vrtspike_jax.ops.pallas_launch import launch
from vrtspike_jax.ops.pallas_rows import Piece, Tile, inside, pieces, vector

# Abramowitz and Stegun 7.1.26: |error| < 1.5e-7, far below bfloat16.
ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
ERF_P = 0.3275911

_call = functools.partial(launch, "gated_mlp", 2)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the kernels are specialised for.

    Attributes:
        rows: Tokens in all.
        rows_per_sample: Tokens that share one branch scale.
        channels: C.
        hidden: Width of the gated layer.
        block: Tokens of one program.
        warps: Warps of one program.
        chunk: Hidden channels of one program of the backward kernel; a power of two.
        interpret: Run on the CPU, for tests.
    """

    rows: int
    rows_per_sample: int
    channels: int
    hidden: int
    block: int = 64
    warps: int = 4
    chunk: int = 64
    interpret: bool = False

    @property
    def tiles(self) -> int:
        """Tiles of rows."""
        return pl.cdiv(self.rows, self.block)

    @property
    def ragged(self) -> bool:
        """Whether the last tile reaches past the last row."""
        return self.rows % self.block != 0


def _gaussian(x: Array) -> tuple[Array, Array]:
    """The normal distribution's cumulative function and density."""
    tail = jnp.exp(-0.5 * x * x)
    t = 1 / (1 + ERF_P * math.sqrt(0.5) * jnp.abs(x))
    series = jnp.zeros_like(x)
    for coefficient in reversed(ERF):
        series = (series + 0.5 * coefficient) * t
    upper = series * tail
    return jnp.where(x < 0, upper, 1 - upper), tail * (1 / math.sqrt(2 * math.pi))


def _matrix(ref: Any, row_piece: Piece, column_piece: Piece) -> Array:
    row, column = (
        start + jnp.arange(width, dtype=jnp.int32) for start, width, _ in (row_piece, column_piece)
    )
    mask = None
    for part, axis in ((inside(row_piece), 1), (inside(column_piece), 0)):
        if part is not None:
            part = jnp.broadcast_to(jnp.expand_dims(part, axis), (row_piece[1], column_piece[1]))
            mask = part if mask is None else mask & part
    address = ref.at[row[:, None], column[None]]
    return plgpu.load(address, mask=mask, other=None if mask is None else 0)


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _normalise(
    tile: Tile, x_ref: Any, gamma: Any, beta: Any, channels: list
) -> tuple[list[Array], list[Array]]:
    """LayerNorm of a tile in pieces, in the compute dtype, and its input in float32."""
    x = [tile.load(x_ref, p).astype(jnp.float32) for p in channels]
    centred, inverse = pallas_rows.standardise(x, channels, tile.plan.channels)
    normed = [
        (p * inverse * vector(gamma, piece) + vector(beta, piece)).astype(x_ref.dtype)
        for p, piece in zip(centred, channels, strict=True)
    ]
    return normed, x


def _hidden(normed: list[Array], channels: list, chunk: tuple, w: Any, b: Any) -> Array:
    return vector(b, chunk) + sum(
        _dot(n, _matrix(w, piece, chunk)) for n, piece in zip(normed, channels, strict=True)
    )


def _forward_kernel(*refs: Any, plan: Plan) -> None:
    x_ref, scale_ref, gamma, beta, w11, b11, w12, b12, w2, b2, out_ref = refs
    tile, channels = Tile(plan, pl.program_id(0)), pieces(plan.channels, 64)
    normed, x = _normalise(tile, x_ref, gamma, beta, channels)
    out = [jnp.broadcast_to(vector(b2, p), n.shape) for n, p in zip(normed, channels, strict=True)]
    for chunk in pieces(plan.hidden, 64):
        a = _hidden(normed, channels, chunk, w11, b11)
        c = _hidden(normed, channels, chunk, w12, b12)
        h = (a * _gaussian(a)[0] * c).astype(x_ref.dtype)
        out = [o + _dot(h, _matrix(w2, chunk, p)) for o, p in zip(out, channels, strict=True)]
    branch = tile.branch_scale(scale_ref)
    for p, original, value in zip(channels, x, out, strict=True):
        tile.store(out_ref, p, original + branch * value)


def _hidden_kernel(*refs: Any, plan: Plan) -> None:
    """Gradients of the hidden layer, for one tile of rows and one chunk of hidden channels."""
    x_ref, dy_ref, scale_ref, gamma, beta, w11, b11, w12, b12, w2 = refs[:10]
    n_ref, dhidden_ref, h_ref, sums_ref = refs[10:]
    chunks = pl.cdiv(plan.hidden, plan.chunk)
    index, number = lax.div(pl.program_id(0), chunks), lax.rem(pl.program_id(0), chunks)
    tile, channels = Tile(plan, index), pieces(plan.channels, 64)
    columns = (number * plan.chunk, plan.chunk, plan.hidden - number * plan.chunk)
    if plan.hidden % plan.chunk == 0:
        columns = (columns[0], plan.chunk, plan.chunk)
    dtype = x_ref.dtype
    normed, _ = _normalise(tile, x_ref, gamma, beta, channels)
    branch = tile.branch_scale(scale_ref)
    dout = [(branch * tile.load(dy_ref, p).astype(jnp.float32)).astype(dtype) for p in channels]
    for n, p in zip(normed, channels, strict=True):
        tile.store(n_ref, p, n, number == 0)
    a = _hidden(normed, channels, columns, w11, b11)
    c = _hidden(normed, channels, columns, w12, b12)
    dh = sum(_dot(d, _matrix(w2, columns, p).T) for d, p in zip(dout, channels, strict=True))
    cdf, density = _gaussian(a)
    gate = a * cdf
    tile.store(h_ref, columns, branch * gate * c)
    for offset, d in ((0, dh * c * (cdf + a * density)), (plan.hidden, dh * gate)):
        tile.store(dhidden_ref, columns, d, offset=offset)
        tile.store_sum(sums_ref, columns, d, offset=offset)


def _cast(weights: tuple[Array, ...], dtype: jnp.dtype) -> list[Array]:
    """Matrices in the compute dtype, vectors in float32."""
    return [w.astype(dtype if w.ndim == 2 else jnp.float32) for w in weights]


def forward(plan: Plan, x: Array, branch_scale: Array, *weights: Array) -> Array:
    """The block; see `vrtspike_jax.ops.gated_mlp` for the arguments."""
    rows = x.reshape(plan.rows, plan.channels)
    out = jax.ShapeDtypeStruct(rows.shape, rows.dtype)
    y = _call(_forward_kernel, plan, plan.tiles, out, rows, branch_scale, *_cast(weights, x.dtype))
    return y.reshape(x.shape)


def backward(
    plan: Plan, x: Array, branch_scale: Array, dy: Array, *weights: Array
) -> tuple[Array, ...]:
    """Gradients of `forward` with respect to `x` and the weights."""
    rows, hidden = plan.rows, plan.hidden
    shapes = [(rows, plan.channels), (rows, 2 * hidden), (rows, hidden)]
    outputs = [jax.ShapeDtypeStruct(s, x.dtype) for s in shapes]
    outputs.append(jax.ShapeDtypeStruct((plan.tiles, 2 * hidden), jnp.float32))
    flat_x, flat_dy = (a.reshape(rows, plan.channels) for a in (x, dy))
    n, dhidden, h, sums = _call(
        _hidden_kernel,
        plan,
        plan.tiles * pl.cdiv(hidden, plan.chunk),
        outputs,
        flat_x,
        flat_dy,
        branch_scale,
        *_cast(weights[:-1], x.dtype),
    )
    gamma, _, w11, _, w12, _, _, _ = weights
    dn = dhidden @ jnp.concatenate([w11, w12], axis=1).astype(x.dtype).T
    norm = pallas_norm.make_plan(rows, plan.rows_per_sample, plan.channels, plan.interpret)
    dx, (dgamma, dbeta, db2) = pallas_norm.backward(norm, flat_x, dn, gamma, flat_dy, branch_scale)
    dw11, dw12 = jnp.split(_product(n, dhidden), 2, axis=1)
    db11, db12 = jnp.split(jnp.sum(sums, axis=0), 2)
    gradients = (dgamma, dbeta, dw11, db11, dw12, db12, _product(h, flat_dy), db2)
    gradients = (g.astype(w.dtype) for g, w in zip(gradients, weights, strict=True))
    return dx.reshape(x.shape), *gradients


def _product(a: Float[Array, "m i"], b: Float[Array, "m j"]) -> Float[Array, "i j"]:
    return jnp.einsum("mi,mj->ij", a, b, preferred_element_type=jnp.float32)
