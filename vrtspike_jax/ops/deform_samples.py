"""Where a deformable convolution samples, as tiles that its kernels share."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from vrtspike_jax.ops.pallas_assembly import LOG2_E, assembly, multiply_add, opaque

TAPS = 9


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the kernels are specialised for.

    Attributes:
        size: N, H, W of input and output.
        groups: Deformable groups.
        sources: Flows; groups / sources consecutive groups follow one of them.
        channels: Input channels of a deformable group.
        features: Output channels.
        magnitude: The offset is magnitude * tanh(raw) + flow and the modulation sigmoid(raw);
            None means that `raw` holds both as they are, and there is no flow.
        quad: Groups that a program samples at once.
        pixels: Output pixels of a tile.
        warps: Warps of a program.
        stages: Depth of the compiler's software pipeline; beyond 1, gathers would bypass the
            first-level cache.
        interpret: Run on the CPU, for tests.
    """

    size: tuple[int, int, int]
    groups: int
    sources: int
    channels: int
    features: int
    magnitude: float | None
    quad: int
    pixels: int = 64
    warps: int = 4
    stages: int = 1
    interpret: bool = False

    @property
    def width(self) -> int:
        """Padded channels of a group."""
        return pl.next_power_of_2(self.channels)

    @property
    def quads(self) -> int:
        """Quads of groups."""
        return self.groups // self.quad

    @property
    def total(self) -> int:
        """Output pixels."""
        n, h, w = self.size
        return n * h * w

    @property
    def tiles(self) -> int:
        """Tiles of output pixels."""
        return pl.cdiv(self.total, self.pixels)


def make_plan(
    size: tuple[int, int, int],
    groups: int,
    quad: int,
    sources: int,
    channels: int,
    features: int,
    magnitude: float | None,
    **fields: Any,
) -> Plan | None:
    """Checks that the kernels fit these sizes; None where they do not."""
    plan = Plan(size, groups, sources, channels, features, magnitude, quad, **fields)
    powers = quad & (quad - 1) == 0 and (groups // sources) % quad == 0
    # Triton's smallest product is 16 wide; beyond 64 a tile would not fit into registers.
    return plan if powers and 16 <= quad * plan.width <= 64 else None


def pixel_tile(plan: Plan, tile: Array) -> tuple[Array, Array, Array, Array]:
    """Flat index, image, row and column of a tile's pixels; 8 x 8 squares where they fit."""
    _, h, w = plan.size
    inner = jnp.arange(plan.pixels, dtype=jnp.int32)
    if plan.pixels == 64 and h % 8 == 0 and w % 8 == 0:
        column = lax.rem(tile, w // 8) * 8 + lax.rem(inner, 8)
        tile = lax.div(tile, w // 8)
        row = lax.rem(tile, h // 8) * 8 + lax.div(inner, 8)
        image = jnp.broadcast_to(lax.div(tile, h // 8), inner.shape)
        return (image * h + row) * w + column, image, row, column
    flat = tile * plan.pixels + inner
    image = jnp.minimum(lax.div(flat, h * w), plan.size[0] - 1)  # Beyond the end: masked later.
    return flat, image, lax.rem(lax.div(flat, w), h), lax.rem(flat, w)


class Samples:
    """Where one tap of a quad of groups samples, and with which weights."""

    def __init__(self, plan: Plan, refs: tuple, pixel: tuple, tap: Array, quad: Array):
        x_ref, raw_ref, flow_ref = refs
        flat, image, row, column = pixel
        self.plan, self.x_ref = plan, x_ref
        _, h, w = plan.size
        self.valid = None
        if plan.total % plan.pixels:
            self.valid = flat < plan.total
        inner = jnp.arange(plan.quad, dtype=jnp.int32)
        group = quad * plan.quad + inner
        # Of consecutive indices, the compiler would read neighbours with one thread, and then move
        # them to the threads that gather.
        hidden = opaque(inner, plan.interpret)[None, :]
        self.parts = [(flat[:, None], quad, tap, jnp.int32(part), hidden) for part in range(3)]
        self.mask = None
        if self.valid is not None:
            self.mask = jnp.broadcast_to(self.valid[:, None], (plan.pixels, plan.quad))
        raw = [self._load(raw_ref.at[index], self.mask).astype(jnp.float32) for index in self.parts]
        if plan.magnitude is None:
            y, x, self.modulation = raw
        else:
            self.tanh = [_tanh(part, plan) for part in raw[:2]]
            self.modulation = _logistic(LOG2_E * raw[2], plan)
            source = lax.div(quad * plan.quad, plan.groups // plan.sources)
            # Flow is (x, y).
            flow = [self._load(flow_ref.at[flat, source, c], self.valid) for c in (1, 0)]
            y, x = (
                multiply_add(plan.magnitude, part, f[:, None], plan.interpret)
                for part, f in zip(self.tanh, flow, strict=True)
            )
        y += (row + lax.div(tap, 3) - 1).astype(jnp.float32)[:, None]
        x += (column + lax.rem(tap, 3) - 1).astype(jnp.float32)[:, None]
        top, left = jnp.floor(y), jnp.floor(x)
        self.down, self.across = y - top, x - left
        rows, columns = _neighbours(top, h), _neighbours(left, w)
        base = (image[:, None] * plan.groups + group[None, :]) * h
        self.corners = [
            ((base + r) * w + c, inside_r & inside_c)
            for r, inside_r in rows
            for c, inside_c in columns
        ]

    def _load(self, address: Any, mask: Array | None) -> Array:
        return plgpu.load(address, mask=mask, other=None if mask is None else 0)

    def weights(self) -> list[Float[Array, "pixels quad"]]:
        """Bilinear weights of the corners (top left, top right, bottom left, bottom right)."""
        down, across = self.down, self.across
        pairs = [(a, b) for a in (1 - down, down) for b in (1 - across, across)]
        return [
            jnp.where(inside, a * b, 0.0)
            for (a, b), (_, inside) in zip(pairs, self.corners, strict=True)
        ]

    def index(self, corner: int) -> tuple[Array, Array]:
        """Indices of a corner's channels in the group-major input."""
        channel = jnp.arange(self.plan.width, dtype=jnp.int32)
        return self.corners[corner][0][:, :, None], channel[None, None, :]

    def gather(self, corner: int) -> Float[Array, "pixels quad width"]:
        """A corner's channels."""
        return plgpu.load(self.x_ref.at[self.index(corner)]).astype(jnp.float32)

    def columns(self, dtype: Any) -> Float[Array, "pixels columns"]:
        """Samples times the modulation."""
        samples = jnp.zeros((self.plan.pixels, self.plan.quad, self.plan.width), jnp.float32)
        for corner, weight in enumerate(self.weights()):
            weight = (weight * self.modulation)[:, :, None]
            samples = multiply_add(weight, self.gather(corner), samples, self.plan.interpret)
        return samples.astype(dtype).reshape(self.plan.pixels, self.plan.quad * self.plan.width)


def _neighbours(low: Array, size: int) -> list[tuple[Array, Array]]:
    """Index, clamped, and whether it is inside, of coordinates `low` and `low + 1`."""
    # First in float32: a coordinate may be too large for an integer. Neighbours of -2 and of `size`
    # are outside, too.
    low = jnp.clip(low, -2.0, size).astype(jnp.int32)
    return [
        (jnp.clip(index, 0, size - 1), (index >= 0) & (index < size)) for index in (low, low + 1)
    ]


def _logistic(x: Array, plan: Plan) -> Array:
    """1 / (1 + 2**-x), at most 2e-7 off, in a quarter of the instructions that XLA's would take."""
    if plan.interpret:
        return 1 / (1 + jnp.exp2(-x))
    return assembly(
        "{ .reg .f32 t; neg.f32 t, $1; ex2.approx.ftz.f32 t, t;"
        " add.f32 t, t, 0f3F800000; rcp.approx.ftz.f32 $0, t; }",
        x,
    )


def _tanh(x: Array, plan: Plan) -> Array:
    return multiply_add(2.0, _logistic(2 * LOG2_E * x, plan), -1.0, plan.interpret)
