"""A pre-norm gated feed-forward block as Triton kernels: one pass over the activations.

With n = LayerNorm(x), a = n W11 + b11, c = n W12 + b12, h = gelu(a) * c, the block is
y = x + s (h W2 + b2), where s is one number for each sample (stochastic depth). The forward
kernel reads x and writes y. The backward kernel rebuilds everything from x and writes dx and the
operands of the weight gradients, which are plain matrix products over all rows.

Triton wants powers of two, so channels are cut into pieces: 96 is 64 + 32.
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

EPSILON = 1e-5
# Abramowitz and Stegun 7.1.26: |error| < 1.5e-7, far below bfloat16.
ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
ERF_P = 0.3275911


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
        interpret: Run on the CPU, for tests.
    """

    rows: int
    rows_per_sample: int
    channels: int
    hidden: int
    block: int = 64
    warps: int = 4
    interpret: bool = False

    @property
    def programs(self) -> int:
        """Number of programs."""
        return pl.cdiv(self.rows, self.block)


def _pieces(size: int, largest: int) -> list[tuple[int, int, int]]:
    """Cuts an axis into (start, width, valid): widths are powers of two, at least 16."""
    pieces, start = [], 0
    while start < size:
        left = size - start
        width = min(largest, 1 << (left.bit_length() - 1))
        if width < 16 or (left - width < 8 and left != width):
            width = max(16, pl.next_power_of_2(left))
        valid = min(width, left)
        pieces.append((start, width, valid))
        start += valid
    return pieces


def _erf(x: Array) -> Array:
    t = 1 / (1 + ERF_P * jnp.abs(x))
    tail = jnp.exp(-x * x)
    series = jnp.zeros_like(x)
    for coefficient in reversed(ERF):
        series = (series + coefficient) * t
    return jnp.where(x < 0, series * tail - 1, 1 - series * tail)


def _gaussian_cdf(x: Array) -> Array:
    return 0.5 * (1 + _erf(x * (1 / math.sqrt(2))))


class _Tile:
    """Rows of one program, and how to read and write their pieces."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.rows = pl.program_id(0) * plan.block + jnp.arange(plan.block, dtype=jnp.int32)
        self.valid = self.rows < plan.rows if plan.rows % plan.block else None

    def _address(self, ref: Any, piece: tuple[int, int, int]) -> tuple[Any, Array | None]:
        start, width, valid = piece
        column = jnp.arange(width, dtype=jnp.int32)
        mask = None
        if valid != width:
            mask = jnp.broadcast_to(column[None] < valid, (self.plan.block, width))
        if self.valid is not None:
            inside = jnp.broadcast_to(self.valid[:, None], (self.plan.block, width))
            mask = inside if mask is None else mask & inside
        return ref.at[self.rows[:, None], (start + column)[None]], mask

    def load(self, ref: Any, piece: tuple[int, int, int]) -> Array:
        address, mask = self._address(ref, piece)
        return plgpu.load(address, mask=mask, other=None if mask is None else 0)

    def store(self, ref: Any, piece: tuple[int, int, int], value: Array) -> None:
        address, mask = self._address(ref, piece)
        plgpu.store(address, value.astype(ref.dtype), mask=mask)

    def branch_scale(self, ref: Any) -> Float[Array, "block 1"]:
        sample = lax.div(self.rows, jnp.int32(self.plan.rows_per_sample))
        return plgpu.load(ref.at[sample], mask=self.valid, other=None if self.valid is None else 0)[
            :, None
        ]

    def store_sum(self, ref: Any, piece: tuple[int, int, int], value: Array) -> None:
        """Writes the sum over this program's rows."""
        start, width, valid = piece
        if self.valid is not None:
            value = jnp.where(self.valid[:, None], value, 0)
        column = jnp.arange(width, dtype=jnp.int32)
        mask = None if valid == width else column < valid
        plgpu.store(ref.at[pl.program_id(0), start + column], jnp.sum(value, axis=0), mask=mask)


def _vector(ref: Any, piece: tuple[int, int, int]) -> Float[Array, "1 width"]:
    start, width, valid = piece
    column = jnp.arange(width, dtype=jnp.int32)
    mask = None if valid == width else column < valid
    return plgpu.load(ref.at[start + column], mask=mask, other=None if mask is None else 0)[None]


def _matrix(ref: Any, row_piece: tuple[int, int, int], column_piece: tuple[int, int, int]) -> Array:
    (r, height, r_valid), (c, width, c_valid) = row_piece, column_piece
    row, column = jnp.arange(height, dtype=jnp.int32), jnp.arange(width, dtype=jnp.int32)
    mask = None
    if r_valid != height or c_valid != width:
        mask = (row < r_valid)[:, None] & (column < c_valid)[None]
    address = ref.at[(r + row)[:, None], (c + column)[None]]
    return plgpu.load(address, mask=mask, other=None if mask is None else 0)


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _normalise(
    x: list[Array], pieces: list[tuple[int, int, int]], channels: int
) -> tuple[list[Array], Array]:
    """Normalised pieces (zero outside their valid part) and 1 / standard deviation."""
    mean = sum(jnp.sum(p, axis=1, keepdims=True) for p in x) / channels
    centred = []
    for p, (_, width, valid) in zip(x, pieces, strict=True):
        inside = jnp.arange(width, dtype=jnp.int32)[None] < valid
        centred.append(p - mean if valid == width else jnp.where(inside, p - mean, 0))
    variance = sum(jnp.sum(p * p, axis=1, keepdims=True) for p in centred) / channels
    inverse = lax.rsqrt(variance + EPSILON)
    return [p * inverse for p in centred], inverse


def _hidden(normed: list[Array], channels: list, chunk: tuple, w: Any, b: Any) -> Array:
    return _vector(b, chunk) + sum(
        _dot(n, _matrix(w, piece, chunk)) for n, piece in zip(normed, channels, strict=True)
    )


def _forward_kernel(*refs: Any, plan: Plan) -> None:
    x_ref, scale_ref, gamma, beta, w11, b11, w12, b12, w2, b2, out_ref = refs
    tile, channels = _Tile(plan), _pieces(plan.channels, 64)
    x = [tile.load(x_ref, p).astype(jnp.float32) for p in channels]
    normed, _ = _normalise(x, channels, plan.channels)
    normed = [
        (n * _vector(gamma, p) + _vector(beta, p)).astype(x_ref.dtype)
        for n, p in zip(normed, channels, strict=True)
    ]
    out = [jnp.broadcast_to(_vector(b2, p), n.shape) for n, p in zip(normed, channels, strict=True)]
    for chunk in _pieces(plan.hidden, 64):
        a = _hidden(normed, channels, chunk, w11, b11)
        c = _hidden(normed, channels, chunk, w12, b12)
        h = (a * _gaussian_cdf(a) * c).astype(x_ref.dtype)
        out = [o + _dot(h, _matrix(w2, chunk, p)) for o, p in zip(out, channels, strict=True)]
    branch = tile.branch_scale(scale_ref)
    for p, original, value in zip(channels, x, out, strict=True):
        tile.store(out_ref, p, original + branch * value)


def _backward_kernel(*refs: Any, plan: Plan) -> None:
    x_ref, dy_ref, scale_ref, gamma, beta, w11, b11, w12, b12, w2 = refs[:10]
    dx_ref, n_ref, da_ref, dc_ref, h_ref = refs[10:15]
    dgamma, dbeta, db11, db12, db2 = refs[15:]
    tile, channels = _Tile(plan), _pieces(plan.channels, 64)
    dtype = x_ref.dtype
    unit, inverse = _normalise(
        [tile.load(x_ref, p).astype(jnp.float32) for p in channels], channels, plan.channels
    )
    normed = [
        (n * _vector(gamma, p) + _vector(beta, p)).astype(dtype)
        for n, p in zip(unit, channels, strict=True)
    ]
    branch = tile.branch_scale(scale_ref)
    dy = [tile.load(dy_ref, p).astype(jnp.float32) for p in channels]
    dout = [(branch * d).astype(dtype) for d in dy]
    for n, d, p in zip(normed, dout, channels, strict=True):
        tile.store(n_ref, p, n)
        tile.store_sum(db2, p, d.astype(jnp.float32))
    dn = [jnp.zeros(d.shape, jnp.float32) for d in dy]
    for chunk in _pieces(plan.hidden, 64):
        a = _hidden(normed, channels, chunk, w11, b11)
        c = _hidden(normed, channels, chunk, w12, b12)
        cdf = _gaussian_cdf(a)
        gate = a * cdf
        dh = sum(_dot(d, _matrix(w2, chunk, p).T) for d, p in zip(dout, channels, strict=True))
        da = dh * c * (cdf + a * jnp.exp(-0.5 * a * a) * (1 / math.sqrt(2 * math.pi)))
        dc = dh * gate
        tile.store(h_ref, chunk, branch * gate * c)
        for ref, sums, d in ((da_ref, db11, da), (dc_ref, db12, dc)):
            tile.store(ref, chunk, d)
            tile.store_sum(sums, chunk, d)
        da, dc = da.astype(dtype), dc.astype(dtype)
        dn = [
            d + _dot(da, _matrix(w11, p, chunk).T) + _dot(dc, _matrix(w12, p, chunk).T)
            for d, p in zip(dn, channels, strict=True)
        ]
    for d, u, p in zip(dn, unit, channels, strict=True):
        tile.store_sum(dgamma, p, d * u)
        tile.store_sum(dbeta, p, d)
    dn = [d * _vector(gamma, p) for d, p in zip(dn, channels, strict=True)]
    mean = sum(jnp.sum(d, axis=1, keepdims=True) for d in dn) / plan.channels
    along = sum(jnp.sum(d * u, axis=1, keepdims=True) for d, u in zip(dn, unit, strict=True))
    along /= plan.channels
    for d, u, original, p in zip(dn, unit, dy, channels, strict=True):
        tile.store(dx_ref, p, original + inverse * (d - mean - u * along))


def _call(kernel: Any, plan: Plan, outputs: Any, *inputs: Array) -> Any:
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        out_shape=outputs,
        grid=(plan.programs,),
        interpret=plan.interpret,
        compiler_params=plgpu.CompilerParams(num_warps=plan.warps, num_stages=2),
        name=kernel.__name__.strip("_").replace("kernel", "gated_mlp"),
    )(*inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated_mlp(plan: Plan, x: Array, branch_scale: Array, *weights: Array) -> Array:
    """The block over rows (M, C); see `vrtspike_jax.ops.gated_mlp` for the arguments."""
    return _forward(plan, x, branch_scale, *weights)[0]


def _cast(weights: tuple[Array, ...], dtype: jnp.dtype) -> list[Array]:
    """Matrices in the compute dtype, vectors in float32."""
    return [w.astype(dtype if w.ndim == 2 else jnp.float32) for w in weights]


def _forward(plan: Plan, x: Array, branch_scale: Array, *weights: Array) -> tuple[Array, tuple]:
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    y = _call(_forward_kernel, plan, out, x, branch_scale, *_cast(weights, x.dtype))
    return y, (x, branch_scale, weights)


def _backward(plan: Plan, saved: tuple, dy: Array) -> tuple:
    x, branch_scale, weights = saved
    rows, channels, hidden = plan.rows, plan.channels, plan.hidden
    shape = jax.ShapeDtypeStruct
    wide = shape((rows, hidden), x.dtype)
    sums = [shape((plan.programs, n), jnp.float32) for n in (channels, channels, hidden, hidden)]
    sums.append(sums[0])
    outputs = [shape(x.shape, x.dtype), shape(x.shape, x.dtype), wide, wide, wide, *sums]
    operands = _cast(weights[:-1], x.dtype)
    dx, n, da, dc, h, *partial = _call(
        _backward_kernel, plan, outputs, x, dy, branch_scale, *operands
    )
    dgamma, dbeta, db11, db12, db2 = (p.sum(axis=0) for p in partial)

    def weight_gradient(a, b):
        return jnp.einsum("mi,mj->ij", a, b, preferred_element_type=jnp.float32)

    gradients = (
        dgamma,
        dbeta,
        weight_gradient(n, da),
        db11,
        weight_gradient(n, dc),
        db12,
        weight_gradient(h, dy),
        db2,
    )
    gradients = tuple(g.astype(w.dtype) for g, w in zip(gradients, weights, strict=True))
    # Stochastic depth's scale is drawn, not learned.
    return dx, jnp.zeros_like(branch_scale), *gradients


gated_mlp.defvjp(_forward, _backward)
