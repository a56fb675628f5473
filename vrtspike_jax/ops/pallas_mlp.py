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
from collections.abc import Callable, Iterable, Iterator
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
BACKWARD = {"block": 64, "warps": 4, "chunk": 32, "stages": 3, "joined": True, "keep": True}
# Where two programs' weights fit into the shared memory of a multiprocessor.
STAYING = FORWARD | {"width": 32, "joined": True, "ahead": 1, "early": True}
STAYING_BYTES = 115_712


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
        width: Largest piece of channels. With 32, two forward programs that stay, of 64 tokens
            and joined, fit into one multiprocessor's shared memory.
        joined: Compute a and c by one product, and n's gradient from theirs by another one; needs
            chunks that divide the hidden layer.
        ahead: Chunks whose products are begun before the rest of the chunk before; of the forward
            kernel, where programs stay.
        early: Load x a tile ahead where programs stay.
        keep: Keep rows' moments for LayerNorm's backward pass, rather than compute them again.
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
    width: int = 64
    joined: bool = False
    ahead: int = 0
    early: bool = False
    keep: bool = False
    interpret: bool = False

    @property
    def tiles(self) -> int:
        """Tiles of rows."""
        return pl.cdiv(self.rows, self.block)

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
    forward, backward = dict(FORWARD), dict(BACKWARD)
    if hidden % backward["chunk"]:
        del backward["joined"]
    weights = 3 * channels * hidden * jnp.dtype(dtype).itemsize
    programs = 0 if interpret else 2 * _large_multiprocessors()
    if weights + 4096 <= STAYING_BYTES and hidden % STAYING["chunk"] == 0 and programs:
        forward = STAYING | {"programs": programs}
    return Plans(*(Plan(*sizes, **t, interpret=interpret) for t in (forward, backward)))


def _large_multiprocessors() -> int:
    """Those of this machine's GPU, if they have twice `STAYING_BYTES` of shared memory; else 0."""
    device = jax.local_devices()[0]
    # Hopper, and Blackwell's servers.
    large = str(getattr(device, "compute_capability", "")) in ("9.0", "10.0", "10.3")
    return getattr(device, "core_count", 0) if large else 0


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


def _affine(x: Array, gamma: Any, beta: Any, piece: Piece, dtype: Any) -> Array:
    return (x * vector(gamma, piece) + vector(beta, piece)).astype(dtype)


def _floats(x: list[Array]) -> list[Array]:
    return [p.astype(jnp.float32) for p in x]


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


def _walk(plan: Plan, x_ref: Any, channels: list[Piece], load_weights: Any, run: Any) -> None:
    """Calls `run(tile, pieces of x, weights of all chunks)` for each tile of a program.

    A program that stays loads weights once, and x a tile ahead. Another one has None for weights.
    """

    def load(tile: Tile) -> list[Array]:
        return [tile.load(x_ref, p) for p in channels]

    first = pl.program_id(0)
    if not plan.programs:
        tile = Tile(plan, first)
        run(tile, load(tile), None)
        return
    weights = [load_weights(i) for i in range(plan.steps)]
    for first_matrices, second in weights:
        for matrix in (*first_matrices, second):
            list(matrix)
    programs = plan.launched

    def step(i: Array, x: list[Array]) -> list[Array]:
        index = first + i * programs
        tile, after = Tile(plan, index), x
        if plan.early:
            after = load(Tile(plan, jnp.minimum(index + programs, plan.tiles - 1)))
        else:
            x = load(tile)
        run(tile, x, weights)
        return after

    turns = lax.div(plan.tiles - first + programs - 1, programs)
    lax.fori_loop(0, turns, step, load(Tile(plan, first)) if plan.early else [])


def _dot_pieces(a: Iterable[Array], b: list[Array]) -> Array:
    return sum(_dot(p, q) for p, q in zip(a, b, strict=True))


def _load_weights(
    plan: Plan, i: Array, channels: list[Piece], first_refs: list, w2_ref: Any
) -> tuple[list[_Lazy], _Lazy]:
    """What a chunk needs of the first matrices, and of the second: loaded when asked for."""
    chunk = plan.columns(i)
    both = plan.both(i) if plan.joined else chunk
    first = [
        _Lazy(lambda j, ref=ref: _matrix(ref, channels[j], both), len(channels))
        for ref in first_refs
    ]
    return first, _Lazy(lambda j: _matrix(w2_ref, chunk, channels[j]), len(channels))


def _first(
    plan: Plan, normed: _Lazy, w1: list[_Lazy], chunk: Piece, b11: Any, b12: Any
) -> list[Array]:
    """a and c of a chunk."""
    if plan.joined:
        both = jnp.split(_dot_pieces(normed, list(w1[0])), 2, axis=1)
    else:
        both = (_dot_pieces(normed, list(w)) for w in w1)
    return [v + vector(b, chunk) for v, b in zip(both, (b11, b12), strict=True)]


def _forward_kernel(*refs: Any, plan: Plan) -> None:
    x_ref, scale_ref, gamma, beta, *first_refs, b11, b12, w2_ref, b2, out_ref = refs
    channels, dtype = pieces(plan.channels, plan.width), x_ref.dtype

    def load(i: Array) -> tuple[list[_Lazy], _Lazy]:
        return _load_weights(plan, i, channels, first_refs, w2_ref)

    def run(tile: Tile, x: list[Array], weights: list | None) -> None:
        x_hat, _ = pallas_rows.standardise(_floats(x), channels, plan.channels)
        normed = _Lazy(lambda j: _affine(x_hat[j], gamma, beta, channels[j], dtype), len(x_hat))
        if weights is None:
            list(normed)

        def first(i: Array, w1: list[_Lazy]) -> list[Array]:
            return _first(plan, normed, w1, plan.columns(i), b11, b12)

        def last(a: Array, c: Array, out: list[Array], w2: _Lazy) -> list[Array]:
            # The short form takes more registers, which programs that stay have anyhow.
            if weights is None:
                gelu = a * pallas_gelu.cumulative(a, plan.interpret)
            else:
                gelu = pallas_gelu.gelu(a, plan.interpret)
            h = (gelu * c).astype(dtype)
            return [o + _dot(h, w) for o, w in zip(out, w2, strict=True)]

        def step(i: Array, out: list[Array]) -> list[Array]:
            w1, w2 = load(i)
            return last(*first(i, w1), out, w2)

        out = [jnp.zeros(p.shape, jnp.float32) for p in x_hat]
        if weights is None:
            out = lax.fori_loop(0, plan.steps, step, out)
        else:
            hidden = [first(i, weights[i][0]) for i in range(plan.ahead)]
            for i, (_, w2) in enumerate(weights):
                if i + plan.ahead < plan.steps:
                    hidden.append(first(i + plan.ahead, weights[i + plan.ahead][0]))
                out = last(*hidden.pop(0), out, w2)
        branch = tile.branch_scale(scale_ref)
        for p, value, left in zip(channels, out, x, strict=True):
            # Read again once something is written: the loop needs the registers.
            left = (tile.load(x_ref, p) if weights is None else left).astype(jnp.float32)
            tile.store(out_ref, p, left + branch * (value + vector(b2, p)))

    _walk(plan, x_ref, channels, load, run)


def _backward_kernel(*refs: Any, plan: Plan) -> None:
    """Gradients of x and of the hidden layer, and what these are to be multiplied by."""
    x_ref, dy_ref, scale_ref, gamma, beta, *first_refs, b11, b12, w2_ref = refs[:-4]
    dx_ref, dhidden_ref, x_hat_ref, h_ref = refs[-4:]
    channels, dtype = pieces(plan.channels, plan.width), x_ref.dtype

    def load(i: Array) -> tuple[list[_Lazy], _Lazy]:
        return _load_weights(plan, i, channels, first_refs, w2_ref)

    def run(tile: Tile, x: list[Array], weights: list | None) -> None:
        mean, inverse = pallas_rows.moments(_floats(x), channels, plan.channels)
        x_hat = pallas_rows.rescale(_floats(x), channels, mean, inverse)
        for p, value in zip(channels, x_hat, strict=True):
            tile.store(x_hat_ref, p, value)
        branch = tile.branch_scale(scale_ref)
        _store_column(tile, x_hat_ref, plan.channels, jnp.ones_like(branch))
        _store_column(tile, h_ref, plan.hidden, branch)
        normed = _Lazy(lambda j: _affine(x_hat[j], gamma, beta, channels[j], dtype), len(x_hat))

        def scaled(j: int) -> Array:
            return (branch * tile.load(dy_ref, channels[j]).astype(jnp.float32)).astype(dtype)

        dout = _Lazy(scaled, len(x_hat))
        if weights is None:
            list(normed), list(dout)

        def step(i: Array, dn: list[Array], w1: list[_Lazy], w2: _Lazy) -> list[Array]:
            chunk = plan.columns(i)
            for w in w1:
                list(w)
            a, c = _first(plan, normed, w1, chunk, b11, b12)
            dh = _dot_pieces(dout, [w.T for w in w2])
            cumulative = pallas_gelu.cumulative(a, plan.interpret)
            gelu, slope = a * cumulative, pallas_gelu.slope(a, cumulative, plan.interpret)
            tile.store(h_ref, chunk, branch * gelu * c)
            d = (dh * c * slope).astype(dtype), (dh * gelu).astype(dtype)
            if plan.joined:
                d = (jnp.stack(d, axis=2).transpose(0, 2, 1).reshape(plan.block, -1),)
                tile.store(dhidden_ref, plan.both(i), d[0])
            else:
                for part, offset in zip(d, (0, plan.hidden), strict=True):
                    tile.store(dhidden_ref, chunk, part, offset)
            for part, weights in zip(d, w1, strict=True):
                dn = [total + _dot(part, w.T) for total, w in zip(dn, weights, strict=True)]
            return dn

        dn = [jnp.zeros(p.shape, jnp.float32) for p in x_hat]
        if weights is None:
            dn = lax.fori_loop(0, plan.steps, lambda i, dn: step(i, dn, *load(i)), dn)
        else:
            for i, matrices in enumerate(weights):
                dn = step(i, dn, *matrices)
        # LayerNorm's backward pass. Its input is read again, as the loop needs all registers.
        again = _floats([tile.load(x_ref, p) for p in channels])
        if not plan.keep:
            mean, inverse = pallas_rows.moments(again, channels, plan.channels)
        again = pallas_rows.rescale(again, channels, mean, inverse)
        g = [d * vector(gamma, p) for d, p in zip(dn, channels, strict=True)]
        dx = pallas_rows.standardise_gradient(g, again, inverse, plan.channels)
        for p, value in zip(channels, dx, strict=True):
            tile.store(dx_ref, p, tile.load(dy_ref, p) + value)

    _walk(plan, x_ref, channels, load, run)


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
    y = _call(_forward_kernel, plan, out, rows, branch_scale, *weights)
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
