"""LayerNorm and a projection, y = n W + b with n = gamma x_hat + beta, as a Triton kernel each way.

Programs stay: with all weights in shared memory they walk over tiles of rows, which are copied
ahead. The backward kernel reads x, y's gradient dy and the gradient that comes around the branch
once each, writes x's, and sums in registers, over all rows that a program meets,

    P = dy^T (x_hat + SHIFT)

The channels of a row of x_hat add up to nothing, so that the mean of P over the channels is SHIFT
times the sum of dy over rows, D, and what is left is X = x_hat^T dy. They give the gradients
gamma X + beta D of W, the sum over y's channels of W X of gamma, and W D of beta.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from vrtspike_jax.ops.layer_norm import EPSILON
from vrtspike_jax.ops.pallas_assembly import assembly, multiply_add
from vrtspike_jax.ops.pallas_launch import large_multiprocessors, launch
from vrtspike_jax.ops.pallas_rows import (
    Piece,
    Tile,
    dot,
    inside,
    matrix,
    pieces,
    side_by_side,
    turns,
    vector,
)

FORWARD = {"block": 64, "warps": 4, "stages": 3, "width": 128, "least": 16}
BACKWARD = {"block": 64, "warps": 8, "stages": 3, "width": 256, "least": 64}
# Programs that a multiprocessor holds: forward two, of 101 KiB of shared memory each, backward one
# of 216 KiB.
RESIDENT = (2, 1)
# Channels of x and of y that these fit, with the sums in registers.
LARGEST = (96, 288)
# Channels of x that rows are loaded and normalised by: so a row is with four threads of a warp.
WIDTH = 32
# As much of a bfloat16's precision goes to x_hat as without it: its root mean square is 1.
SHIFT = 0.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a kernel is specialised for.

    Attributes:
        rows: Rows in all.
        rows_per_sample: Rows that share one branch scale.
        channels: Of x; a multiple of `WIDTH`.
        features: Channels of y; a multiple of `WIDTH`.
        programs: How many to launch, each of which walks over tiles.
        block: Rows of a tile; a power of two, backward at least 64 on GPUs.
        warps: Warps of one program.
        stages: Depth of the pipeline of copies; 3 has the next tile's on their way.
        width: Channels of y in one product; a power of two.
        least: No product is to have fewer: tensor cores want 64 of what they take as rows.
        interpret: Run on the CPU, for tests.
    """

    rows: int
    rows_per_sample: int
    channels: int
    features: int
    programs: int
    block: int
    warps: int
    stages: int
    width: int
    least: int
    interpret: bool = False

    @property
    def tiles(self) -> int:
        """Tiles of rows."""
        return pl.cdiv(self.rows, self.block)

    @property
    def ragged(self) -> bool:
        """Whether the last tile reaches past the last row."""
        return self.rows % self.block != 0

    @property
    def loaded(self) -> list[Piece]:
        """The channels of x, as they are loaded, normalised and stored."""
        return pieces(self.channels, WIDTH)

    @property
    def inner(self) -> list[Piece]:
        """The channels of x, as products take them: joined from one or two of those."""
        return pieces(self.channels, 2 * WIDTH)

    @property
    def outer(self) -> list[Piece]:
        """The channels of y."""
        *others, (start, width, valid) = pieces(self.features, self.width)
        return [*others, (start, max(width, self.least), valid)]


class Plans(NamedTuple):
    """One for each way."""

    forward: Plan
    backward: Plan


def make_plans(
    rows: int,
    rows_per_sample: int,
    channels: int,
    features: int,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> Plans | None:
    """Plans, or None where the kernels do not serve: for these sizes, this dtype or this GPU."""
    both = zip((channels, features), LARGEST, strict=True)
    fits = all(n % WIDTH == 0 and n <= largest for n, largest in both) and features >= channels
    if not fits or rows * features >= 2**31:  # what the kernels count in
        return None
    if not interpret and (dtype.itemsize != 2 or not large_multiprocessors()):
        return None
    plans = []
    for sizes, resident in zip((FORWARD, BACKWARD), RESIDENT, strict=True):
        most = 3 if interpret else resident * large_multiprocessors()
        programs = min(most, pl.cdiv(rows, sizes["block"]))
        plans.append(
            Plan(rows, rows_per_sample, channels, features, programs, **sizes, interpret=interpret)
        )
    return Plans(*plans)


def _row_mean(pieces_of_rows: list[Array], plan: Plan) -> Float[Array, "block 1"]:
    """Mean over the channels, of pieces of the same width: these are added first."""
    return jnp.sum(sum(pieces_of_rows), axis=1, keepdims=True) * (1 / plan.channels)


def _row_product(a: list[Array], b: list[Array], plan: Plan) -> Float[Array, "block 1"]:
    """Mean over the channels of products."""
    total = a[0] * b[0]
    for p, q in zip(a[1:], b[1:], strict=True):
        total = multiply_add(p, q, total, plan.interpret)
    return _row_mean([total], plan)


def _centre(x: list[Array], plan: Plan) -> tuple[list[Array], Float[Array, "block 1"]]:
    """Rows less their mean, and 1 / deviation."""
    x = [p.astype(jnp.float32) for p in x]
    mean = _row_mean(x, plan)
    x = [p - mean for p in x]
    return x, lax.rsqrt(_row_product(x, x, plan) + EPSILON)


def _join(values: list[Array], plan: Plan) -> list[Array]:
    """Pieces as products take them, from pieces as they are loaded."""
    joined = []
    for start, width, _ in plan.inner:
        first, *second = values[start // WIDTH : (start + width) // WIDTH]
        joined.append(side_by_side(first, *second) if second else first)
    return joined


def _forward_kernel(*refs: Any, plan: Plan) -> None:
    x_ref, gamma_ref, beta_ref, weight_ref, bias_ref, y_ref = refs
    own = pl.program_id(0)
    weights = [[matrix(weight_ref, c, f) for c in plan.inner] for f in plan.outer]
    gamma, beta = (
        [vector(ref, c).astype(jnp.float32) for c in plan.loaded] for ref in (gamma_ref, beta_ref)
    )

    def walk(turn: Array, _: list) -> list:
        tile = Tile(plan, own + turn * plan.programs)
        x, inverse = _centre([tile.load(x_ref, c) for c in plan.loaded], plan)
        normed = []
        for p, scale, bias in zip(x, gamma, beta, strict=True):
            n = multiply_add(scale, p * inverse, bias, plan.interpret)
            normed.append(n.astype(weight_ref.dtype))
        normed = _join(normed, plan)
        for piece, parts in zip(plan.outer, weights, strict=True):
            product = sum(dot(n, w) for n, w in zip(normed, parts, strict=True))
            tile.store(y_ref, piece, product + vector(bias_ref, piece))
        return []

    lax.fori_loop(0, turns(plan.tiles, plan.programs), walk, [])


def _backward_kernel(*refs: Any, plan: Plan) -> None:
    x_ref, dy_ref, around_ref, scale_ref, gamma_ref, weight_ref, dx_ref, sums_ref = refs
    own, interpret, dtype = pl.program_id(0), plan.interpret, weight_ref.dtype
    weights = [[matrix(weight_ref, c, f).T for f in plan.outer] for c in plan.inner]

    def walk(turn: Array, sums: tuple) -> tuple:
        products, totals = sums
        tile = Tile(plan, own + turn * plan.programs)
        x, inverse = _centre([tile.load(x_ref, c) for c in plan.loaded], plan)
        dy = [tile.load(dy_ref, f) for f in plan.outer]
        # Asked for long before it is used, as it is not copied ahead: shared memory is full.
        around = [tile.load(around_ref, c) for c in plan.loaded]
        branch = tile.branch_scale(scale_ref)
        shifted = [multiply_add(inverse, p, SHIFT, interpret) for p in x]
        rows = _join([p.astype(dtype) for p in shifted], plan)
        g = _scaled_gradient(plan, dy, weights, gamma_ref)
        products = [
            [p + dot(d.T, r) for p, r in zip(line, rows, strict=True)]
            for line, d in zip(products, dy, strict=True)
        ]
        dx, around = _add_gradient(plan, g, shifted, inverse, around)
        for c, value in zip(plan.loaded, dx, strict=True):
            tile.store(dx_ref, c, value)
        totals = [
            multiply_add(branch, a, t, interpret) for a, t in zip(around, totals, strict=True)
        ]
        return products, totals

    products = [[jnp.zeros((f[1], c[1]), jnp.float32) for c in plan.inner] for f in plan.outer]
    totals = [jnp.zeros((plan.block, c[1]), jnp.float32) for c in plan.loaded]
    products, totals = lax.fori_loop(0, turns(plan.tiles, plan.programs), walk, (products, totals))
    for f, line in zip(plan.outer, products, strict=True):
        for c, value in zip(plan.inner, line, strict=True):
            _store_transposed(sums_ref, own, f, c, value)
    for c, value in zip(plan.loaded, totals, strict=True):
        column = c[0] + jnp.arange(c[1], dtype=jnp.int32)
        plgpu.store(sums_ref.at[own, plan.channels, column], jnp.sum(value, axis=0))


def _scaled_gradient(
    plan: Plan, dy: list[Array], weights: list[list[Array]], gamma_ref: Any
) -> list[Float[Array, "block width"]]:
    """The gradient of x_hat, in pieces as they are loaded.

    With the products' own layout a row's sums would go through shared memory and wait for other
    warps, so the products go there, once. For Triton to keep what follows in the layout of loads,
    it takes what is reshaped, which is no product's layout to it any more, and a load to meet
    there: gamma, for all rows.
    """
    dn = []
    for parts in weights:
        # Apart, as of a chain of products Triton has the warps along the channels repeat all.
        first, *others = (dot(d, w) for d, w in zip(dy, parts, strict=True))
        for other in others:
            first = first + other if plan.interpret else _add(first, other)
        first = first.astype(dy[0].dtype)
        count = first.shape[1] // WIDTH
        dn += jnp.split(first, count, axis=1) if count > 1 else [first]
    shape = plan.block, WIDTH
    column = lax.broadcasted_iota(jnp.int32, shape, 1)
    scaled = []
    for value, (start, *_) in zip(dn, plan.loaded, strict=True):
        value = value.reshape(plan.block, -1, 8).astype(jnp.float32).reshape(shape)
        gamma = plgpu.load(gamma_ref.at[start + column]).astype(jnp.float32)
        scaled.append(value * gamma)
    return scaled


def _add(a: Array, b: Array) -> Array:
    """a + b, of which no product is made that starts with the other one."""
    return assembly("add.f32 $0, $1, $2;", a, b)


def _add_gradient(
    plan: Plan, g: list[Array], shifted: list[Array], inverse: Array, around: list[Array]
) -> tuple[list[Array], list[Array]]:
    """x's gradient, given x_hat's and x_hat + SHIFT, and in float32 what comes around the branch.

    `pallas_rows.standardise_gradient` in two instructions an element.
    """
    mean = _row_mean(g, plan)
    slope = _row_product(g, shifted, plan) - SHIFT * mean
    constant, factor = (SHIFT * slope - mean) * inverse, -slope * inverse
    dx, floats = [], [a.astype(jnp.float32) for a in around]
    for a, n, skip in zip(g, shifted, floats, strict=True):
        value = multiply_add(inverse, a, skip + constant, plan.interpret)
        dx.append(multiply_add(factor, n, value, plan.interpret))
    return dx, floats


def _store_transposed(ref: Any, own: Array, rows: Piece, columns: Piece, value: Array) -> None:
    row, column = (p[0] + jnp.arange(p[1], dtype=jnp.int32) for p in (rows, columns))
    mask = inside(rows)
    mask = None if mask is None else jnp.broadcast_to(mask[:, None], value.shape)
    plgpu.store(ref.at[own, column[None], row[:, None]], value, mask=mask)


def _call(kernel: Any, plan: Plan, outputs: Any, *inputs: Array) -> Any:
    name = "normed_projection"
    return launch(name, plan.stages, kernel, plan, plan.programs, outputs, *inputs)


def forward(
    plan: Plan,
    x: Float[Array, "rows c"],
    gamma: Float[Array, " c"],
    beta: Float[Array, " c"],
    weight: Float[Array, "c features"],
    bias: Float[Array, " features"],
) -> Float[Array, "rows features"]:
    """The projection of LayerNorm's result."""
    output = jax.ShapeDtypeStruct((plan.rows, plan.features), x.dtype)
    return _call(_forward_kernel, plan, output, x, gamma, beta, weight.astype(x.dtype), bias)


def backward(
    plan: Plan,
    x: Float[Array, "rows c"],
    dy: Float[Array, "rows features"],
    around: Float[Array, "rows c"],
    scale: Float[Array, " samples"],
    gamma: Float[Array, " c"],
    beta: Float[Array, " c"],
    weight: Float[Array, "c features"],
) -> tuple[Array, Array, Array, Array, Array]:
    """Gradients.

    Args:
        plan: The backward pass's.
        x: LayerNorm's input.
        dy: Gradient of the projection.
        around: Gradient to add to x's.
        scale: The branch's scale for each sample.
        gamma: LayerNorm's scale.
        beta: LayerNorm's bias.
        weight: Of the projection.

    Returns:
        The gradient of x in its dtype, and in float32 those of gamma, beta and the weight, and the
        sum over rows of the scale times the gradient around the branch.
    """
    outputs = [
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        # The last row is for the sum of what comes around the branch, and longer than that.
        jax.ShapeDtypeStruct((plan.programs, plan.channels + 1, plan.features), jnp.float32),
    ]
    inputs = x, dy, around, scale.astype(jnp.float32), gamma, weight.astype(x.dtype)
    dx, sums = _call(_backward_kernel, plan, outputs, *inputs)
    sums = jnp.sum(sums, axis=0)
    products, total = sums[:-1], sums[-1, : plan.channels]
    bias = jnp.mean(products, axis=0) / SHIFT
    products -= SHIFT * bias
    gamma, beta, weight = (v.astype(jnp.float32) for v in (gamma, beta, weight))
    dgamma, dbeta = jnp.sum(weight * products, axis=1), jnp.sum(weight * bias, axis=1)
    return dx, dgamma, dbeta, gamma[:, None] * products + beta[:, None] * bias, total
