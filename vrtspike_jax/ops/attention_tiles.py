"""What the attention kernels share: sizes, tiles of tokens, exponentials, the walk over tiles."""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from vrtspike_jax.ops.pallas_assembly import assembly
from vrtspike_jax.ops.window_layout import OTHER_REGION, FrameWindows, PackedWindows

LOG2_E = math.log2(math.e)
# Most elements of a window's keys, for a head, whose gradients fit a program's registers: with 4
# warps, those of keys and values take 80 of the 255 that a thread has.
WHOLE_ELEMENTS = 320 * 16


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a kernel runs.

    Attributes:
        group: Most windows that a program handles for each tile of the bias.
        warps: Warps of a program.
        stages: Depth of the compiler's software pipeline.
    """

    group: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the kernels are specialised for.

    Attributes:
        layout: Where tokens lie.
        heads: Heads of the queries, keys and values.
        dim: Channels of a head.
        shifted: Whether to compare regions: given as an array for `PackedWindows`.
        columns: First channel of queries, keys and values in their arrays.
        out_column: First channel of the result in its array.
        scale: Factor of the queries, rounded to their dtype.
        block: Tokens of a tile.
        forward: Launch of the forward kernel.
        queries: Launch of the kernel for the queries' gradient.
        keys: Launch of the kernel for the gradients of keys and values.
        whole: Launch of the kernel for all three of them, which replaces both, or None.
        bias: Launch of the kernel for the bias.
        sums: Whether the backward pass also sums the gradients of packed arrays over all tokens.
        compare_all: Compare the tokens' regions in all windows, even in those that hold one.
        interpret: Run on the CPU, for tests.
    """

    layout: PackedWindows | FrameWindows
    heads: int
    dim: int
    shifted: bool = False
    columns: tuple[int, int, int] = (0, 0, 0)
    out_column: int = 0
    scale: float = 1.0
    block: int = 64
    forward: Launch = Launch(group=2, warps=4, stages=3)
    queries: Launch = Launch(group=2, warps=4, stages=3)
    keys: Launch = Launch(group=1, warps=4, stages=3)
    whole: Launch | None = None
    bias: Launch = Launch(group=1, warps=4, stages=3)
    sums: bool = False
    compare_all: bool = False
    interpret: bool = False

    @property
    def blocks(self) -> int:
        """Tiles along the tokens of a window."""
        return pl.cdiv(self.layout.tokens, self.block)

    @property
    def ragged(self) -> bool:
        """Whether the last tile sticks out of the window."""
        return self.layout.tokens % self.block != 0


def make_plan(layout: PackedWindows | FrameWindows, heads: int, dim: int, **fields: Any) -> Plan:
    """Chooses tile sizes, and whether one kernel computes the gradients of whole windows."""
    block = 64 if layout.tokens > 32 else 32 if layout.tokens > 16 else 16
    sizes = {"block": block}
    padded = pl.cdiv(layout.tokens, block) * block * head_width(dim)
    if padded <= WHOLE_ELEMENTS:
        sizes["whole"] = Launch(group=1, warps=4, stages=2)
    return Plan(layout, heads, dim, **sizes | fields)


def head_width(dim: int) -> int:
    """Channels of a tile: a power of two that tensor cores take."""
    return max(16, pl.next_power_of_2(dim))


def exp2(x: Array, plan: Plan) -> Array:
    """2**x in one instruction; the library's version spends three more on denormals."""
    if plan.interpret:
        return jnp.exp2(x)
    return assembly("ex2.approx.ftz.f32 $0, $1;", x)


def exp(x: Array, shift: Array, plan: Plan) -> Array:
    """2**(x * log2(e) - shift): a multiply-add that the compiler would not fuse, then `exp2`."""
    shift = lax.broadcast_in_dim(shift, x.shape, (0, 1))
    if plan.interpret:
        return jnp.exp2(x * LOG2_E - shift)
    fused = "{ .reg .f32 y; fma.rn.f32 y, $1, 0f3FB8AA3B, $2; ex2.approx.ftz.f32 $0, y; }"
    return assembly(fused, x, lax.neg(shift))


def exp_times(x: Array, shift: Array, factor: Array, addend: Array, plan: Plan) -> Array:
    """`addend` + `exp` * `factor`, the sum by another multiply-add."""
    shift = lax.broadcast_in_dim(shift, x.shape, (0, 1))
    if plan.interpret:
        return addend + jnp.exp2(x * LOG2_E - shift) * factor
    fused = (
        "{ .reg .f32 y; fma.rn.f32 y, $1, 0f3FB8AA3B, $2;"
        " ex2.approx.ftz.f32 y, y; fma.rn.f32 $0, y, $3, $4; }"
    )
    return assembly(fused, x, lax.neg(shift), factor, addend)


def masked_load(address: Any, mask: Array | None) -> Array:
    """Loads, with zeros where the mask is false."""
    return plgpu.load(address, mask=mask, other=None if mask is None else 0)


def tile_tokens(plan: Plan, tile: Array) -> tuple[Array, Array | None]:
    """Tokens of a tile, and which of them are in the window; None where all are."""
    token = lax.add(lax.mul(tile, plan.block), lax.iota(jnp.int32, plan.block))
    return token, lax.lt(token, plan.layout.tokens) if plan.ragged else None


class Side:
    """One tile of a window's tokens, as queries (their results) or as keys."""

    def __init__(self, plan: Plan, window: Array, tile: Array, region_ref: Any):
        self.plan, self.window = plan, window
        self.tokens = self.token, self.valid = tile_tokens(plan, tile)
        place = plan.layout.place(window, self.token)
        self.key_rows, self.query_rows = place.key_rows, place.query_rows
        self._region_ref = region_ref

    def region(self) -> Int[Array, " block"]:
        """Numbers of the tokens' regions."""
        if self._region_ref is None:
            return self.plan.layout.region(self.window, self.token)
        address = self._region_ref.at[lax.rem(self.window, self._region_ref.shape[0]), self.token]
        return masked_load(address, self.valid)

    def _address(self, ref: Any, rows: Array, column: Array) -> tuple[Any, Array | None]:
        width = head_width(self.plan.dim)
        shape = (self.plan.block, width)
        channel = lax.iota(jnp.int32, width)
        mask = None
        if width != self.plan.dim:
            mask = lax.broadcast_in_dim(lax.lt(channel, self.plan.dim), shape, (1,))
        if self.valid is not None:
            inside = lax.broadcast_in_dim(self.valid, shape, (0,))
            mask = inside if mask is None else lax.bitwise_and(mask, inside)
        columns = lax.expand_dims(lax.add(column, channel), (0,))
        return ref.at[lax.expand_dims(rows, (1,)), columns], mask

    def load(self, ref: Any, rows: Array, column: Array) -> Float[Array, "block width"]:
        """A head's channels of each token; zero where there is none."""
        address, mask = self._address(ref, rows, column)
        return masked_load(address, mask)

    def load_queries(self, ref: Any, column: Array) -> Float[Array, "block width"]:
        """A head's scaled queries."""
        q = self.load(ref, self.query_rows, column)
        return q if self.plan.scale == 1 else q * jnp.asarray(self.plan.scale, q.dtype)

    def store(self, ref: Any, rows: Array, column: Array, value: Array) -> None:
        """Inverse of `load`."""
        address, mask = self._address(ref, rows, column)
        plgpu.store(address, value.astype(ref.dtype), mask=mask)

    def load_row(
        self, ref: Any, head: Array, window: Array | None = None
    ) -> Float[Array, " block"]:
        """One number for each token, of an array (heads, windows * tokens)."""
        window = self.window if window is None else window
        index = lax.add(lax.mul(window, self.plan.layout.tokens), self.token)
        return masked_load(ref.at[head, index], self.valid)

    def store_row(self, ref: Any, head: Array, value: Array) -> None:
        """Inverse of `load_row`."""
        index = lax.add(lax.mul(self.window, self.plan.layout.tokens), self.token)
        plgpu.store(ref.at[head, index], value, mask=self.valid)


def logits(rows: Side, columns: Side, a: Array, b: Array, bias: Array | None) -> Array:
    """S for one tile, or its transpose if `rows` are the keys; float32."""
    s = lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    if bias is not None:
        s = lax.add(s, lax.convert_element_type(bias, jnp.float32))
    if not rows.plan.shifted:
        return s
    if rows.plan.compare_all or not isinstance(rows.plan.layout, FrameWindows):
        return _part_regions(rows, columns, s)
    # Most windows hold one region.
    part = functools.partial(_part_regions, rows, columns)
    return lax.cond(rows.plan.layout.has_regions(rows.window), part, lambda s: s, s)


def _part_regions(rows: Side, columns: Side, s: Array) -> Array:
    apart = lax.expand_dims(rows.region(), (1,)) != lax.expand_dims(columns.region(), (0,))
    return s + jnp.where(apart, OTHER_REGION, 0.0)


def both_valid(row: Array | None, column: Array | None) -> Array | None:
    """Which elements of a tile of logits exist, given which tokens do; None if all do."""
    if row is None:
        return None
    return lax.expand_dims(row, (1,)) & lax.expand_dims(column, (0,))


def bias_tile(rows: tuple, columns: tuple, head: Array) -> tuple[tuple, Array | None]:
    """Index of a tile of the bias or of its gradient, and the mask of what exists.

    Rows and columns are as `tile_tokens` gives them.
    """
    (row, row_valid), (column, column_valid) = rows, columns
    address = (head, lax.expand_dims(row, (1,)), lax.expand_dims(column, (0,)))
    return address, both_valid(row_valid, column_valid)


def split(refs: tuple, plan: Plan, biased: bool, inputs: int) -> tuple:
    """Sorts a kernel's references: `inputs` arrays, bias or None, regions or None, the rest."""
    rest = list(refs[inputs:])
    bias = rest.pop(0) if biased else None
    regions = rest.pop(0) if plan.shifted and isinstance(plan.layout, PackedWindows) else None
    return (*refs[:inputs], bias, regions, rest)


def program(plan: Plan, group: int) -> tuple[list[Array], Array, Array]:
    """Windows, tile and head of this program; neighbours share windows."""
    index, head = lax.div(pl.program_id(0), plan.heads), lax.rem(pl.program_id(0), plan.heads)
    first = lax.div(index, plan.blocks) * group
    return [first + g for g in range(group)], lax.rem(index, plan.blocks), head


def walk(plan: Plan, bias_ref: Any, head: Array, own: Array, body: Any, carry: Any) -> Any:
    """Runs `body(tile, bias, carry)` over the tiles of a window.

    Each step loads the next one's bias, rows being those of tile `own`, so as not to wait for it.
    """
    rows = tile_tokens(plan, own)

    def bias(tile: Array) -> Array | None:
        if bias_ref is None:
            return None
        address, inside = bias_tile(rows, tile_tokens(plan, tile), head)
        return masked_load(bias_ref.at[address], inside)

    def step(tile: Array, state: tuple) -> tuple:
        following = bias(jnp.minimum(tile + 1, plan.blocks - 1))
        return body(tile, state[0], state[1]), following

    first = bias(jnp.int32(0))
    if plan.blocks == 1:
        return body(jnp.int32(0), carry, first)
    return lax.fori_loop(0, plan.blocks, step, (carry, first))[0]
