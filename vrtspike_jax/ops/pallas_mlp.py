"""A pre-norm gated feed-forward block as Triton kernels.

With n = LayerNorm(x), a = n W11 + b11, c = n W12 + b12, h = gelu(a) * c, the block is
y = x + s (h W2 + b2), where s is one number for each sample (stochastic depth). Each way has one
kernel, which walks over chunks of the hidden layer with n, and backward with n's gradient, at hand;
Triton copies the weights to shared memory a chunk ahead. Where shared memory is large enough,
forward programs stay instead, with all weights in it, and walk over tiles of rows.

The backward kernel reads x and y's gradient and writes x's, and what the weights' gradients are
plain matrix products of: those of a and c side by side, x as LayerNorm has it before its scale and
bias, and s h. A column of ones after x, and one of s after s h, make of these products the sums
over rows too, so that gradients of biases, and of LayerNorm's scale and bias, are had from them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from vrtspike_jax.ops import pallas_gelu, pallas_rows
from vrtspike_jax.ops.pallas_launch import large_multiprocessors, launch
from vrtspike_jax.ops.pallas_rows import Piece, Tile, dot, matrix, pieces, vector

# Columns that an extra one takes up: rows stay whole multiples of 32 bytes, a unit of memory.
PAD = 16
FORWARD = {"block": 64, "warps": 4, "chunk": 32, "stages": 1}
BACKWARD = {"block": 64, "warps": 4, "chunk": 32, "stages": 3}
# Forward programs stay where two of them fit into the shared memory of a multiprocessor: so many
# bytes of weights each, beside 4 KiB for what Triton moves between threads.
STAYING_BYTES = 111_616


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
        programs: How many to launch, which then stay: each keeps all weights in shared memory and
            walks over tiles. 0 for a program a tile, which loads weights chunk by chunk.
        joined: Compute a and c by one product, and n's gradient from theirs by another one; needs
            chunks that divide the hidden layer.
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
    programs: int = 0
    joined: bool = False
    interpret: bool = False

    @property
    def tiles(self) -> int:
        """Tiles of rows."""
        return pl.cdiv(self.rows, self.block)

    @property
    def pieces(self) -> list[Piece]:
        """The channels; in smaller pieces where programs stay, for two to fit."""
        return pieces(self.channels, 32 if self.programs else 64)

    @property
    def launched(self) -> int:
        """Programs to launch."""
        return min(self.programs, self.tiles) or self.tiles

    @property
    def steps(self) -> int:
        """Chunks of the hidden layer."""
        return pl.cdiv(self.hidden, self.chunk)

    @property
    def ragged(self) -> bool:
        """Whether the last tile reaches past the last row."""
        return self.rows % self.block != 0

    def columns(self, step: Array) -> Piece:
        """The hidden channels of a step."""
        start = step * self.chunk
        whole = self.hidden % self.chunk == 0
        return start, self.chunk, self.chunk if whole else self.hidden - start

    def both(self, step: Array) -> Piece:
        """The columns of a step in a matrix of a's and c's side by side in each chunk."""
        return 2 * self.chunk * step, 2 * self.chunk, 2 * self.chunk


class Plans(NamedTuple):
    """One for each way."""

    forward: Plan
    backward: Plan


def make_plans(
    rows: int,
    rows_per_sample: int,
    channels: int,
    hidden: int,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> Plans:
    """Chooses tile sizes, and whether forward programs stay."""
    sizes = rows, rows_per_sample, channels, hidden
    joined = hidden % BACKWARD["chunk"] == 0
    weights = 3 * channels * hidden * jnp.dtype(dtype).itemsize
    programs = 0
    if joined and not interpret and weights <= STAYING_BYTES:
        programs = 2 * large_multiprocessors()
    return Plans(
        Plan(*sizes, **FORWARD, programs=programs, joined=programs > 0, interpret=interpret),
        Plan(*sizes, **BACKWARD, joined=joined, interpret=interpret),
    )


def _floats(tile: Tile, ref: Any) -> list[Array]:
    """All pieces of a tile, in float32."""
    loaded = [tile.load(ref, p) for p in tile.plan.pieces]
    return [p.astype(jnp.float32) for p in loaded]


def _affine_piece(x: Array, gamma: Any, beta: Any, piece: Piece, dtype: Any) -> Array:
    return (x * vector(gamma, piece) + vector(beta, piece)).astype(dtype)


def _affine(x: list[Array], gamma: Any, beta: Any, plan: Plan, dtype: Any) -> list[Array]:
    parts = zip(x, plan.pieces, strict=True)
    return [_affine_piece(p, gamma, beta, piece, dtype) for p, piece in parts]


class _Lazy:
    """Pieces that are made when first asked for.

    Those that meet their first product one by one take turns in shared memory.
    """

    def __init__(self, make: Callable[[int], Array], count: int):
        self.make, self.count, self.made = make, count, []

    def __iter__(self) -> Iterator[Array]:
        for j in range(self.count):
            if j == len(self.made):
                self.made.append(self.make(j))
            yield self.made[j]


def _dot_pieces(a: Iterable[Array], b: Iterable[Array]) -> Array:
    return sum(dot(p, q) for p, q in zip(a, b, strict=True))


def _load_weights(plan: Plan, i: Array, first_refs: list, w2_ref: Any) -> tuple[list, _Lazy]:
    """What a chunk needs of the first matrices, and of the second: loaded when asked for."""
    chunk, channels = plan.columns(i), plan.pieces
    both = plan.both(i) if plan.joined else chunk
    first = [
        _Lazy(lambda j, ref=ref: matrix(ref, channels[j], both), len(channels))
        for ref in first_refs
    ]
    return first, _Lazy(lambda j: matrix(w2_ref, chunk, channels[j]), len(channels))


def _first(
    plan: Plan, normed: Iterable[Array], w1: list[_Lazy], chunk: Piece, b11: Any, b12: Any
) -> list[Array]:
    """a and c of a chunk."""
    if plan.joined:
        both = jnp.split(_dot_pieces(normed, list(w1[0])), 2, axis=1)
    else:
        both = (_dot_pieces(normed, list(w)) for w in w1)
    return [v + vector(b, chunk) for v, b in zip(both, (b11, b12), strict=True)]


def _forward_kernel(*refs: Any, plan: Plan) -> None:
    """One tile a program, which loads weights chunk by chunk."""
    x_ref, scale_ref, gamma, beta, *first_refs, b11, b12, w2_ref, b2, out_ref = refs
    tile, channels, dtype = Tile(plan, pl.program_id(0)), plan.pieces, x_ref.dtype
    x_hat, _ = pallas_rows.standardise(_floats(tile, x_ref), channels, plan.channels)
    normed = _affine(x_hat, gamma, beta, plan, dtype)

    def step(i: Array, out: list[Array]) -> list[Array]:
        w1, w2 = _load_weights(plan, i, first_refs, w2_ref)
        a, c = _first(plan, normed, w1, plan.columns(i), b11, b12)
        h = (a * pallas_gelu.cumulative(a, plan.interpret) * c).astype(dtype)
        return [o + dot(h, w) for o, w in zip(out, w2, strict=True)]

    zeros = [jnp.zeros(p.shape, jnp.float32) for p in x_hat]
    out = lax.fori_loop(0, plan.steps, step, zeros)
    branch = tile.branch_scale(scale_ref)
    for p, value in zip(channels, out, strict=True):
        x = tile.load(x_ref, p).astype(jnp.float32)
        tile.store(out_ref, p, x + branch * (value + vector(b2, p)))


def _staying_forward_kernel(*refs: Any, plan: Plan) -> None:
    """Programs that walk over tiles, with all weights in shared memory."""
    x_ref, scale_ref, gamma, beta, *first_refs, b11, b12, w2_ref, b2, out_ref = refs
    channels, dtype, own = plan.pieces, x_ref.dtype, pl.program_id(0)
    weights = [_load_weights(plan, i, first_refs, w2_ref) for i in range(plan.steps)]
    for w1, w2 in weights:
        for lazy in (*w1, w2):
            list(lazy)

    def walk(turn: Array, _: list) -> list:
        tile = Tile(plan, own + turn * plan.launched)
        x = [tile.load(x_ref, p) for p in channels]
        floats = [p.astype(jnp.float32) for p in x]
        x_hat, _ = pallas_rows.standardise(floats, channels, plan.channels)
        normed = _Lazy(lambda j: _affine_piece(x_hat[j], gamma, beta, channels[j], dtype), len(x))

        def first(i: int) -> list[Array]:
            return _first(plan, normed, weights[i][0], plan.columns(i), b11, b12)

        out = [jnp.zeros(p.shape, jnp.float32) for p in x_hat]
        following = first(0)
        for i, (_, w2) in enumerate(weights):
            a, c = following
            # The products of the next chunk run beside what is to be done for this one.
            following = first(i + 1) if i + 1 < plan.steps else None
            h = (pallas_gelu.gelu(a, plan.interpret) * c).astype(dtype)
            out = [o + dot(h, w) for o, w in zip(out, w2, strict=True)]
        branch = tile.branch_scale(scale_ref)
        for p, value, left in zip(channels, out, x, strict=True):
            tile.store(out_ref, p, left.astype(jnp.float32) + branch * (value + vector(b2, p)))
        return []

    lax.fori_loop(0, pallas_rows.turns(plan.tiles, plan.launched), walk, [])


def _backward_kernel(*refs: Any, plan: Plan) -> None:
    """Gradients of x and of the hidden layer, and what these are to be multiplied by."""
    x_ref, dy_ref, scale_ref, gamma, beta, *first_refs, b11, b12, w2_ref = refs[:-4]
    dx_ref, dhidden_ref, x_hat_ref, h_ref = refs[-4:]
    tile, channels, dtype = Tile(plan, pl.program_id(0)), plan.pieces, x_ref.dtype
    x = _floats(tile, x_ref)
    mean, inverse = pallas_rows.moments(x, channels, plan.channels)
    x_hat = pallas_rows.rescale(x, channels, mean, inverse)
    for p, value in zip(channels, x_hat, strict=True):
        tile.store(x_hat_ref, p, value)
    branch = tile.branch_scale(scale_ref)
    _store_column(tile, x_hat_ref, plan.channels, jnp.ones_like(branch))
    _store_column(tile, h_ref, plan.hidden, branch)
    normed = _affine(x_hat, gamma, beta, plan, dtype)
    dout = [(branch * p).astype(dtype) for p in _floats(tile, dy_ref)]

    def step(i: Array, dn: list[Array]) -> list[Array]:
        chunk, (w1, w2) = plan.columns(i), _load_weights(plan, i, first_refs, w2_ref)
        for w in w1:
            list(w)
        a, c = _first(plan, normed, w1, chunk, b11, b12)
        dh = _dot_pieces(dout, [w.T for w in w2])
        cumulative = pallas_gelu.cumulative(a, plan.interpret)
        gelu, slope = a * cumulative, pallas_gelu.slope(a, cumulative, plan.interpret)
        tile.store(h_ref, chunk, branch * gelu * c)
        d = (dh * c * slope).astype(dtype), (dh * gelu).astype(dtype)
        if plan.joined:
            d = (pallas_rows.side_by_side(*d),)
            tile.store(dhidden_ref, plan.both(i), d[0])
        else:
            for part, offset in zip(d, (0, plan.hidden), strict=True):
                tile.store(dhidden_ref, chunk, part, offset)
        for part, weights in zip(d, w1, strict=True):
            dn = [total + dot(part, w.T) for total, w in zip(dn, weights, strict=True)]
        return dn

    zeros = [jnp.zeros(p.shape, jnp.float32) for p in x_hat]
    dn = lax.fori_loop(0, plan.steps, step, zeros)
    # LayerNorm's backward pass. Its input is read again, as the loop needs all registers.
    again = pallas_rows.rescale(_floats(tile, x_ref), channels, mean, inverse)
    g = [d * vector(gamma, p) for d, p in zip(dn, channels, strict=True)]
    dx = pallas_rows.standardise_gradient(g, again, inverse, plan.channels)
    for p, value in zip(channels, dx, strict=True):
        tile.store(dx_ref, p, tile.load(dy_ref, p) + value)


def _store_column(tile: Tile, ref: Any, start: int, column: Float[Array, "block 1"]) -> None:
    """Writes a column, and zeros in the others of the padding that starts there."""
    first = jnp.arange(PAD, dtype=jnp.int32)[None] == 0
    tile.store(ref, (start, PAD, PAD), jnp.where(first, column, 0))


def _call(kernel: Any, plan: Plan, outputs: Any, *inputs: Array) -> Any:
    return launch("gated_mlp", plan.stages, kernel, plan, plan.launched, outputs, *inputs)


def _kernel_weights(plan: Plan, weights: tuple[Array, ...], dtype: jnp.dtype) -> list[Array]:
    """Matrices in the compute dtype, vectors in float32."""
    gamma, beta, w11, b11, w12, b12, *last = weights
    first = (_side_by_side(plan, w11, w12),) if plan.joined else (w11, w12)
    arrays = gamma, beta, *first, b11, b12, *last
    return [w.astype(dtype if w.ndim == 2 else jnp.float32) for w in arrays]


def _side_by_side(plan: Plan, *weights: Array) -> Array:
    """Matrices of the same rows, with their columns of each chunk after each other."""
    cut = [w.reshape(-1, plan.steps, plan.chunk) for w in weights]
    return jnp.stack(cut, axis=2).reshape(plan.channels, -1)


def forward(plan: Plan, x: Array, branch_scale: Array, *weights: Array) -> Array:
    """The block; see `vrtspike_jax.ops.gated_mlp` for the arguments."""
    rows = x.reshape(plan.rows, plan.channels)
    out = jax.ShapeDtypeStruct(rows.shape, rows.dtype)
    weights = _kernel_weights(plan, weights, x.dtype)
    kernel = _staying_forward_kernel if plan.programs else _forward_kernel
    y = _call(kernel, plan, out, rows, branch_scale, *weights)
    return y.reshape(x.shape)


def backward(
    plan: Plan, x: Array, branch_scale: Array, dy: Array, *weights: Array
) -> tuple[Array, ...]:
    """Gradients of `forward` with respect to `x` and the weights."""
    channels, hidden = plan.channels, plan.hidden
    widths = channels, 2 * hidden, channels + PAD, hidden + PAD
    outputs = [jax.ShapeDtypeStruct((plan.rows, width), x.dtype) for width in widths]
    flat_x, flat_dy = (a.reshape(plan.rows, channels) for a in (x, dy))
    inputs = flat_x, flat_dy, branch_scale, *_kernel_weights(plan, weights[:-1], x.dtype)
    dx, dhidden, x_hat, h = _call(_backward_kernel, plan, outputs, *inputs)
    gamma, beta, w11, _, w12, _, _, _ = weights
    products = _product(x_hat, dhidden)[: channels + 1]
    if plan.joined:
        cut = products.reshape(channels + 1, plan.steps, 2, plan.chunk)
        products = [cut[:, :, side].reshape(channels + 1, hidden) for side in (0, 1)]
    else:
        products = jnp.split(products, 2, axis=1)
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
