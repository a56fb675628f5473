"""LayerNorm as Triton kernels, forward and backward, which read and write each array once.

With n = (x - mean) / deviation, y = gamma n + beta and g = gamma dy, over the channels of a row:

    dx = (g - mean(g) - n mean(g n)) / deviation      dgamma = sum of dy n      dbeta = sum of dy

The sums are over rows. Where x is added back to a branch that begins with LayerNorm, dx takes in
the gradient that comes around the branch; of that one too the sum is had for the asking, as it is
the gradient of the bias that ends the branch.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from vrtspike_jax.ops import pallas_rows
from vrtspike_jax.ops.pallas_launch import launch
from vrtspike_jax.ops.pallas_rows import Tile, vector

# Elements of a tile: of six such arrays, half of them running sums, each of 128 threads holds its
# part in registers.
TILE = 2048
# Programs fill an H100's 132 multiprocessors several times over; more only make more partial sums.
PROGRAMS = 1024


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the kernel is specialised for.

    Attributes:
        rows: Rows in all.
        rows_per_sample: Rows that share one branch scale.
        channels: C.
        block: Rows of a tile, a power of two.
        steps: Tiles that a program walks over, keeping sums.
        warps: Warps of one program.
        interpret: Run on the CPU, for tests.
    """

    rows: int
    rows_per_sample: int
    channels: int
    block: int
    steps: int
    warps: int = 4
    interpret: bool = False

    @property
    def programs(self) -> int:
        """Programs, each of which writes one column of partial sums."""
        return pl.cdiv(self.rows, self.block * self.steps)

    @property
    def ragged(self) -> bool:
        """Whether the last program reaches past the last row."""
        return self.rows % (self.block * self.steps) != 0


def make_plan(rows: int, rows_per_sample: int, channels: int, interpret: bool = False) -> Plan:
    """Chooses tile sizes."""
    block = min(64, _power_of_2(TILE // channels))
    steps = _power_of_2(pl.cdiv(rows, block) // PROGRAMS)
    return Plan(rows, rows_per_sample, channels, block, steps, interpret=interpret)


def _power_of_2(limit: int) -> int:
    """The largest up to `limit`, at least 1."""
    return 1 << max(limit.bit_length() - 1, 0)


def _forward_kernel(*refs: Any, plan: Plan) -> None:
    x_ref, gamma_ref, beta_ref, y_ref = refs
    tile, cut = Tile(plan, pl.program_id(0)), pallas_rows.pieces(plan.channels, 256)
    x = [tile.load(x_ref, piece).astype(jnp.float32) for piece in cut]
    normed, _ = pallas_rows.standardise(x, cut, plan.channels)
    for n, piece in zip(normed, cut, strict=True):
        gamma, beta = vector(gamma_ref, piece), vector(beta_ref, piece)
        tile.store(y_ref, piece, n * gamma + beta)


def _backward_kernel(*refs: Any, plan: Plan) -> None:
    """Inputs: x, dy, gamma and, if there are, the gradient around the branch and its scale."""
    x_ref, dy_ref, gamma_ref, *around = refs[:-2]
    dx_ref, sums_ref = refs[-2:]
    program = pl.program_id(0)
    cut = pallas_rows.pieces(plan.channels, 256)
    gamma = [vector(gamma_ref, piece) for piece in cut]

    def step(i: Array, totals: list[Array]) -> list[Array]:
        tile = Tile(plan, program * plan.steps + i)
        x, dy, *skip = (
            [tile.load(ref, piece).astype(jnp.float32) for piece in cut]
            for ref in (x_ref, dy_ref, *around[:1])
        )
        normed, inverse = pallas_rows.standardise(x, cut, plan.channels)
        g = [d * scale for d, scale in zip(dy, gamma, strict=True)]
        dx = pallas_rows.standardise_gradient(g, normed, inverse, plan.channels)
        if skip:
            dx = [a + b for a, b in zip(dx, skip[0], strict=True)]
        for piece, value in zip(cut, dx, strict=True):
            tile.store(dx_ref, piece, value)
        # Rows that stick out add nothing: what they load is zero.
        terms = [d * n for d, n in zip(dy, normed, strict=True)] + dy
        if len(around) == 2:
            branch = tile.branch_scale(around[1])
            terms += [branch * value for value in skip[0]]
        return [total + term for total, term in zip(totals, terms, strict=True)]

    # Summed over rows after the loop, not in it: there a thread adds to its own registers alone.
    zeros = [jnp.zeros((plan.block, width), jnp.float32) for _, width, _ in cut]
    totals = lax.fori_loop(0, plan.steps, step, zeros * _sums(around))
    for i, total in enumerate(totals):
        piece = cut[i % len(cut)]
        channel = i // len(cut) * plan.channels + piece[0] + jnp.arange(piece[1], dtype=jnp.int32)
        address = sums_ref.at[channel, program]
        plgpu.store(address, jnp.sum(total, axis=0), mask=pallas_rows.inside(piece))


def _sums(around: Any) -> int:
    """Sums over rows: for gamma, beta and, with a branch's scale, for what goes around it."""
    return 3 if len(around) == 2 else 2


def forward(
    plan: Plan,
    x: Float[Array, "rows c"],
    gamma: Float[Array, " c"],
    beta: Float[Array, " c"],
    dtype: jnp.dtype,
) -> Float[Array, "rows c"]:
    """LayerNorm of x, as `dtype`; its plan is the backward pass's."""
    plan = dataclasses.replace(plan, steps=1)
    output = jax.ShapeDtypeStruct(x.shape, dtype)
    vectors = (v.astype(jnp.float32) for v in (gamma, beta))
    return launch("layer_norm", 1, _forward_kernel, plan, plan.programs, output, x, *vectors)


def backward(
    plan: Plan,
    x: Float[Array, "rows c"],
    dy: Float[Array, "rows c"],
    gamma: Float[Array, " c"],
    *around: Array,
) -> tuple[Float[Array, "rows c"], Float[Array, "sums c"]]:
    """Gradients of LayerNorm.

    Args:
        plan: From `make_plan`.
        x: LayerNorm's input.
        dy: Gradient of its output.
        gamma: Its scale.
        *around: Nothing; or (rows, c), a gradient to add to x's; or that and the branch's scale for
            each sample.

    Returns:
        The gradient of x in its dtype. In float32 the gradients of gamma and beta and, given a
        branch's scale, the sum over rows of it times the gradient around the branch.
    """
    count = _sums(around)
    outputs = [
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        # Programs last: along rows XLA sums with a block for each row, down columns with very few.
        jax.ShapeDtypeStruct((count * plan.channels, plan.programs), jnp.float32),
    ]
    inputs = x, dy, gamma.astype(jnp.float32), *around
    dx, sums = launch("layer_norm", 2, _backward_kernel, plan, plan.programs, outputs, *inputs)
    return dx, jnp.sum(sums, axis=1).reshape(count, plan.channels)
