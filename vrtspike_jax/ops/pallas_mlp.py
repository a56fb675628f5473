"""A pre-norm gated feed-forward block as Triton kernels.

With n = LayerNorm(x), a = n W11 + b11, c = n W12 + b12, h = gelu(a) * c, the block is
y = x + s (h W2 + b2), where s is one number for each sample (stochastic depth). Each way has one
kernel, which walks over chunks of the hidden layer with n, and backward with n's gradient, at hand;
Triton copies the weights to shared memory a chunk ahead.

The backward kernel reads x and y's gradient and writes x's, and what the weights' gradients are
plain matrix products of: those of a and c side by side, x as LayerNorm has it before its scale and
bias, and s h. A column of ones after x, and one of s after s h, make of these products the sums
over rows too, so that gradients of biases, and of LayerNorm's scale and bias, are had from them.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from vrtspike_jax.ops import pallas_gelu, pallas_rows
from vrtspike_jax.ops.pallas_launch import launch
from vrtspike_jax.ops.pallas_rows import Piece, Tile, inside, pieces, vector

# Columns that an extra one takes up: rows stay whole multiples of 32 bytes, a unit of memory.
PAD = 16
FORWARD = {"block": 64, "warps": 4, "chunk": 32, "stages": 1}
BACKWARD = {"block": 64, "warps": 4, "chunk": 32, "stages": 3}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a kernel is specialised for.

    Attributes:
        rows: Tokens in all.
        rows_per_sample: Tokens that share one branch scale.
        channels: C.
        hidden: Width of the gated layer.
        block: Tokens of one program.
        warps: Warps of one program.
        chunk: Hidden channels of one step; a power of two.
        stages: Depth of the compiler's software pipeline over chunks of the weights.
        interpret: Run on the CPU, for tests.
    """

    rows: int
    rows_per_sample: int
    channels: int
    hidden: int
    block: int = 64
    warps: int = 4
    chunk: int = 32
    stages: int = 2
    interpret: bool = False

    @property
    def tiles(self) -> int:
        """Tiles of rows."""
        return pl.cdiv(self.rows, self.block)

    @property
    def ragged(self) -> bool:
        """Whether the last tile reaches past the last row."""
        return self.rows % self.block != 0

    def columns(self, step: Array) -> Piece:
        """The hidden channels of a step."""
        start = step * self.chunk
        whole = self.hidden % self.chunk == 0
        return start, self.chunk, self.chunk if whole else self.hidden - start


class Plans(NamedTuple):
    """One for each way."""

    forward: Plan
    backward: Plan


def make_plans(
    rows: int, rows_per_sample: int, channels: int, hidden: int, interpret: bool = False
) -> Plans:
    """Chooses tile sizes."""
    sizes = rows, rows_per_sample, channels, hidden
    return Plans(*(Plan(*sizes, **t, interpret=interpret) for t in (FORWARD, BACKWARD)))


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


def _standardise(tile: Tile, x_ref: Any, channels: list) -> tuple[list[Array], Array]:
    x = [tile.load(x_ref, p).astype(jnp.float32) for p in channels]
    return pallas_rows.standardise(x, channels, tile.plan.channels)


def _affine(x: list[Array], gamma: Any, beta: Any, channels: list, dtype: Any) -> list[Array]:
    return [
        (p * vector(gamma, piece) + vector(beta, piece)).astype(dtype)
        for p, piece in zip(x, channels, strict=True)
    ]


def _dot_pieces(a: list[Array], b: list[Array]) -> Array:
    return sum(_dot(p, q) for p, q in zip(a, b, strict=True))


def _forward_kernel(*refs: Any, plan: Plan) -> None:
    x_ref, scale_ref, gamma, beta, w11, b11, w12, b12, w2, b2, out_ref = refs
    tile, channels = Tile(plan, pl.program_id(0)), pieces(plan.channels, 64)
    normed = _affine(_standardise(tile, x_ref, channels)[0], gamma, beta, channels, x_ref.dtype)

    def step(i: Array, out: list[Array]) -> list[Array]:
        chunk = plan.columns(i)
        a, c = (
            _dot_pieces(normed, [_matrix(w, p, chunk) for p in channels]) + vector(b, chunk)
            for w, b in ((w11, b11), (w12, b12))
        )
        h = (a * pallas_gelu.cumulative(a, plan.interpret) * c).astype(x_ref.dtype)
        return [o + _dot(h, _matrix(w2, chunk, p)) for o, p in zip(out, channels, strict=True)]

    zeros = [jnp.zeros(n.shape, jnp.float32) for n in normed]
    out = lax.fori_loop(0, pl.cdiv(plan.hidden, plan.chunk), step, zeros)
    branch = tile.branch_scale(scale_ref)
    for p, value in zip(channels, out, strict=True):
        x = tile.load(x_ref, p).astype(jnp.float32)
        tile.store(out_ref, p, x + branch * (value + vector(b2, p)))


def _backward_kernel(*refs: Any, plan: Plan) -> None:
    """Gradients of x and of the hidden layer, and what these are to be multiplied by."""
    x_ref, dy_ref, scale_ref, gamma, beta, w11, b11, w12, b12, w2 = refs[:10]
    dx_ref, dhidden_ref, x_hat_ref, h_ref = refs[10:]
    tile, channels = Tile(plan, pl.program_id(0)), pieces(plan.channels, 64)
    dtype = x_ref.dtype
    x_hat, _ = _standardise(tile, x_ref, channels)
    for p, value in zip(channels, x_hat, strict=True):
        tile.store(x_hat_ref, p, value)
    normed = _affine(x_hat, gamma, beta, channels, dtype)
    branch = tile.branch_scale(scale_ref)
    _store_column(tile, x_hat_ref, plan.channels, jnp.ones_like(branch))
    _store_column(tile, h_ref, plan.hidden, branch)
    dout = [(branch * tile.load(dy_ref, p).astype(jnp.float32)).astype(dtype) for p in channels]

    def step(i: Array, dn: list[Array]) -> list[Array]:
        chunk = plan.columns(i)
        gate, value = ([_matrix(w, p, chunk) for p in channels] for w in (w11, w12))
        a = _dot_pieces(normed, gate) + vector(b11, chunk)
        c = _dot_pieces(normed, value) + vector(b12, chunk)
        dh = _dot_pieces(dout, [_matrix(w2, chunk, p).T for p in channels])
        cumulative = pallas_gelu.cumulative(a, plan.interpret)
        gelu, slope = a * cumulative, pallas_gelu.slope(a, cumulative, plan.interpret)
        tile.store(h_ref, chunk, branch * gelu * c)
        for d, weights, offset in ((dh * c * slope, gate, 0), (dh * gelu, value, plan.hidden)):
            d = d.astype(dtype)
            tile.store(dhidden_ref, chunk, d, offset)
            dn = [total + _dot(d, w.T) for total, w in zip(dn, weights, strict=True)]
        return dn

    zeros = [jnp.zeros(n.shape, jnp.float32) for n in normed]
    dn = lax.fori_loop(0, pl.cdiv(plan.hidden, plan.chunk), step, zeros)
    # LayerNorm's backward pass. Its input is read again, as the loop needs all registers.
    x_hat, inverse = _standardise(tile, x_ref, channels)
    g = [d * vector(gamma, p) for d, p in zip(dn, channels, strict=True)]
    dx = pallas_rows.standardise_gradient(g, x_hat, inverse, plan.channels)
    for p, value in zip(channels, dx, strict=True):
        tile.store(dx_ref, p, tile.load(dy_ref, p) + value)


def _store_column(tile: Tile, ref: Any, start: int, column: Float[Array, "block 1"]) -> None:
    """Writes a column, and zeros in the others of the padding that starts there."""
    first = jnp.arange(PAD, dtype=jnp.int32)[None] == 0
    tile.store(ref, (start, PAD, PAD), jnp.where(first, column, 0))


def _call(kernel: Any, plan: Plan, outputs: Any, *inputs: Array) -> Any:
    return launch("gated_mlp", plan.stages, kernel, plan, plan.tiles, outputs, *inputs)


def _cast(weights: tuple[Array, ...], dtype: jnp.dtype) -> list[Array]:
    """Matrices in the compute dtype, vectors in float32."""
    return [w.astype(dtype if w.ndim == 2 else jnp.float32) for w in weights]


def forward(plan: Plan, x: Array, branch_scale: Array, *weights: Array) -> Array:
    """The block; see `vrtspike_jax.ops.gated_mlp` for the arguments."""
    rows = x.reshape(plan.rows, plan.channels)
    out = jax.ShapeDtypeStruct(rows.shape, rows.dtype)
    y = _call(_forward_kernel, plan, out, rows, branch_scale, *_cast(weights, x.dtype))
    return y.reshape(x.shape)


def backward(
    plan: Plan, x: Array, branch_scale: Array, dy: Array, *weights: Array
) -> tuple[Array, ...]:
    """Gradients of `forward` with respect to `x` and the weights."""
    channels, hidden = plan.channels, plan.hidden
    widths = channels, 2 * hidden, channels + PAD, hidden + PAD
    outputs = [jax.ShapeDtypeStruct((plan.rows, width), x.dtype) for width in widths]
    flat_x, flat_dy = (a.reshape(plan.rows, channels) for a in (x, dy))
    inputs = flat_x, flat_dy, branch_scale, *_cast(weights[:-1], x.dtype)
    dx, dhidden, x_hat, h = _call(_backward_kernel, plan, outputs, *inputs)
    gamma, beta, w11, _, w12, _, _, _ = weights
    products = jnp.split(_product(x_hat, dhidden)[: channels + 1], 2, axis=1)
    # With n = gamma x_hat + beta, whose weights are the same whether for a or for c.
    dw11, dw12 = (gamma[:, None] * p[:-1] + beta[:, None] * p[-1] for p in products)
    dgamma = sum(jnp.sum(w * p[:-1], axis=1) for w, p in zip((w11, w12), products, strict=True))
    dbeta = sum(jnp.sum(w * p[-1], axis=1) for w, p in zip((w11, w12), products, strict=True))
    dw2 = _product(h, flat_dy)
    gradients = (dgamma, dbeta, dw11, products[0][-1], dw12, products[1][-1])
    gradients += (dw2[:hidden], dw2[hidden])
    gradients = (g.astype(w.dtype) for g, w in zip(gradients, weights, strict=True))
    return dx.reshape(x.shape), *gradients


def _product(a: Float[Array, "m i"], b: Float[Array, "m j"]) -> Float[Array, "i j"]:
    return jnp.einsum("mi,mj->ij", a, b, preferred_element_type=jnp.float32)
