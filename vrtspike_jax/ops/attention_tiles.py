"""What the attention kernels share: sizes, tiles of tokens, exponentials, the walk over tiles."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from vrtspike_jax.ops.pallas_assembly import LOG2_E, assembly
from vrtspike_jax.ops.window_layout import OTHER_REGION, FrameWindows, PackedWindows

# Most elements of a window's keys, for a head, whose gradients fit a program's registers: with 4
# warps, those of keys and values take 80 of the 255 that a thread has.
WHOLE_ELEMENTS = 320 * 16
# Log-sum-exp of queries whose results are dropped: backward kernels that do not skip them find
# exponentials of zero, and so no gradients. Finite, lest differences with it be no numbers.
DROPPED_LSE = 1e30


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a kernel runs.

    Attributes:
        group: Most windows that a program handles for each tile of the bias.
        warps: Warps of a program.
        stages: Depth of the compiler's software pipeline.
        queries: Tokens of a tile of queries; fewer in windows that have fewer.
        keys: Likewise, of keys.
    """

    group: int
    warps: int
    stages: int
    queries: int = 64
    keys: int = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the kernels are specialised for.

    Attributes:
        layout: Where tokens lie.
        heads: Heads of the queries, keys and values.
        dim: Channels of a head.
        biased: Whether there is a bias.
        shifted: Whether to compare regions: given as an array for `PackedWindows`.
        columns: First channel of queries, keys and values in their arrays.
        out_column: First channel of the result in its array.
        scale: Factor of the queries, rounded to their dtype.
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
    biased: bool = False
    shifted: bool = False
    columns: tuple[int, int, int] = (0, 0, 0)
    out_column: int = 0
    scale: float = 1.0
    forward: Launch = Launch(group=2, warps=4, stages=3)
    queries: Launch = Launch(group=2, warps=4, stages=3)
    keys: Launch = Launch(group=1, warps=4, stages=3)
    whole: Launch | None = None
    bias: Launch = Launch(group=1, warps=4, stages=3)
    sums: bool = False
    compare_all: bool = False
    interpret: bool = False

    def sizes(self, launch: Launch) -> tuple[int, int]:
        """Tokens of a kernel's tiles of queries and of keys."""
        most = max(16, pl.next_power_of_2(self.layout.tokens))
        return min(launch.queries, most), min(launch.keys, most)

    def tiles(self, size: int) -> int:
        """Tiles of `size` tokens along those of a window."""
        return pl.cdiv(self.layout.tokens, size)

    def dropped(self, window: Array, size: int) -> tuple[Array, Array] | None:
        """First of a window's tiles of `size` queries whose results nobody reads, and the end.

        None where there are no such tiles, or frames are not whole tiles: then all are computed.
        """
        if not isinstance(self.layout, FrameWindows) or not self.layout.drops:
            return None
        tiles, rest = divmod(math.prod(self.layout.window[1:]), size)
        if rest:
            return None
        first, end = self.layout.dropped(window)
        return lax.mul(first, tiles), lax.mul(end, tiles)

    def is_dropped(self, windows: list[Array], tile: Array, size: int) -> Array | None:
        """Whether nobody reads the results of these windows' tile; None where `dropped` is."""
        ranges = [self.dropped(window, size) for window in windows]
        if ranges[0] is None:
            return None
        inside = [lax.ge(tile, first) & lax.lt(tile, end) for first, end in ranges]
        return functools.reduce(lax.bitwise_and, inside)

    @property
    def scales(self) -> tuple[float, float]:
        """Factors of queries and of keys, in kernels that keep keys while queries pass by.

        There the keys take the scale, once, if it is a power of two, which rounds neither.
        """
        exact = math.frexp(self.scale)[0] == 0.5
        return (1.0, self.scale) if exact else (self.scale, 1.0)


def make_plan(layout: PackedWindows | FrameWindows, heads: int, dim: int, **fields: Any) -> Plan:
    """Chooses how kernels run, and whether one computes the gradients of whole windows."""
    launches = {"whole": Launch(group=1, warps=4, stages=2)}
    # With two warps, wider heads would not fit registers.
    narrow, biased = head_width(dim) <= 32, fields.get("biased")
    # Microseconds of a call on an H100, 5 or 6 frames of 256 x 256 and 6 heads of 16 channels.
    if narrow and biased and layout.tokens > 128:
        # Forward 438 to 425, 320 tokens.
        launches["forward"] = Launch(group=2, warps=2, stages=3, queries=64, keys=32)
    elif narrow and not biased and layout.tokens <= 64:
        # Backward 438 to 389.
        launches["forward"] = Launch(group=1, warps=2, stages=3, queries=64, keys=32)
        launches["whole"] = Launch(group=1, warps=2, stages=2, queries=32, keys=64)
    plan = Plan(layout, heads, dim, **launches | fields)
    if plan.whole is None:
        return plan
    keys = plan.sizes(plan.whole)[1]
    fits = plan.tiles(keys) * keys * head_width(dim) <= WHOLE_ELEMENTS
    return plan if fits else dataclasses.replace(plan, whole=None)


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


class Side:
    """One tile of a window's tokens, as queries (their results) or as keys."""

    def __init__(self, plan: Plan, window: Array, tile: Array, region_ref: Any, size: int):
        self.plan, self.window, self.size = plan, window, size
        self.token = lax.add(lax.mul(tile, size), lax.iota(jnp.int32, size))
        # Which tokens are in the window; None where all are.
        ragged = plan.layout.tokens % size != 0
        self.valid = lax.lt(self.token, plan.layout.tokens) if ragged else None
        place = plan.layout.place(window, self.token)
        self.key_rows, self.query_rows = place.key_rows, place.query_rows
        self._region_ref = region_ref

    def region(self) -> Int[Array, " size"]:
        """Numbers of the tokens' regions."""
        if self._region_ref is None:
            return self.plan.layout.region(self.window, self.token)
        address = self._region_ref.at[lax.rem(self.window, self._region_ref.shape[0]), self.token]
        return masked_load(address, self.valid)

    def _address(self, ref: Any, rows: Array, column: Array) -> tuple[Any, Array | None]:
        width = head_width(self.plan.dim)
        shape = (self.size, width)
        channel = lax.iota(jnp.int32, width)
        mask = None
        if width != self.plan.dim:
            mask = lax.broadcast_in_dim(lax.lt(channel, self.plan.dim), shape, (1,))
        if self.valid is not None:
            inside = lax.broadcast_in_dim(self.valid, shape, (0,))
            mask = inside if mask is None else lax.bitwise_and(mask, inside)
        columns = lax.expand_dims(lax.add(column, channel), (0,))
        return ref.at[lax.expand_dims(rows, (1,)), columns], mask

    def load(
        self, ref: Any, rows: Array, column: Array, scale: float = 1.0
    ) -> Float[Array, "size width"]:
        """A head's channels of each token, times `scale`; zero where there is none."""
        address, mask = self._address(ref, rows, column)
        x = masked_load(address, mask)
        return x if scale == 1 else x * jnp.asarray(scale, x.dtype)

    def store(self, ref: Any, rows: Array, column: Array, value: Array) -> None:
        """Inverse of `load`."""
        address, mask = self._address(ref, rows, column)
        plgpu.store(address, value.astype(ref.dtype), mask=mask)

    def load_row(self, ref: Any, head: Array, window: Array | None = None) -> Float[Array, " size"]:
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


def both_valid(rows: Side, columns: Side) -> Array | None:
    """Which elements of a tile of logits exist; None if all do."""
    shape = (rows.size, columns.size)
    sides = enumerate((rows.valid, columns.valid))
    masks = [lax.broadcast_in_dim(v, shape, (axis,)) for axis, v in sides if v is not None]
    return functools.reduce(lax.bitwise_and, masks) if masks else None


def split(refs: tuple, plan: Plan, inputs: int) -> tuple:
    """Sorts a kernel's references: `inputs` arrays, bias or None, regions or None, the rest."""
    rest = list(refs[inputs:])
    bias = rest.pop(0) if plan.biased else None
    regions = rest.pop(0) if plan.shifted and isinstance(plan.layout, PackedWindows) else None
    return (*refs[:inputs], bias, regions, rest)


def program(plan: Plan, group: int, tiles: int) -> tuple[list[Array], Array, Array]:
    """Windows, tile (one of `tiles`) and head of this program; neighbours share windows."""
    index, head = lax.div(pl.program_id(0), plan.heads), lax.rem(pl.program_id(0), plan.heads)
    first = lax.div(index, tiles) * group
    return [first + g for g in range(group)], lax.rem(index, tiles), head


def walk(tiles: int, bias: Callable[[Array], Array | None], body: Callable, carry: Any) -> Any:
    """Runs `carry = body(tile, carry, bias(tile))` over the tiles of a window.

    Each step loads the next one's bias, so as not to wait for it.
    """

    def step(tile: Array, state: tuple) -> tuple:
        following = bias(jnp.minimum(tile + 1, tiles - 1))
        return body(tile, *state), following

    first = bias(jnp.int32(0))
    if tiles == 1:
        return body(jnp.int32(0), carry, first)
    return lax.fori_loop(0, tiles, step, (carry, first))[0]


def walk_queries(
    plan: Plan, window: Array, size: int, body: Callable, drop: Callable, carry: Any
) -> Any:
    """Runs `carry = body(tile, carry)` over a window's tiles of queries, `drop` over dropped ones.

    Where kept tiles surround dropped ones, `body` takes these too: they have exponentials of zero.
    So it does in windows of one frame, which the caller drops whole.
    """
    tiles, dropped = plan.tiles(size), plan.dropped(window, size)
    if dropped is None or plan.layout.drops_amid or plan.layout.frames == 1:
        return lax.fori_loop(0, tiles, body, carry)
    first, end = dropped
    lax.fori_loop(first, end, lambda tile, _: drop(tile), None)
    # From 0 to `first`, or from `end` to the last; by products, as Pallas lowers a choice between
    # two constants in 64 bits.
    early = jnp.int32(first > 0)
    return lax.fori_loop(end * (1 - early), tiles + (first - tiles) * early, body, carry)
