"""Attention over time at each pixel as Triton kernels: one pass forward, one backward.

With S = q k^T + bias over the frames of one pixel and head, P = softmax(S) and out = P v:

    dP = dout v^T     dS = P * (dP - rowsum(P * dP))
    dq = dS k         dk = dS^T q     dv = P^T dout     dbias = sum of dS over pixels

A pixel's products are far too small for matrix units. What counts is to read and write each array
once, so a program takes some pixels with all their frames, unrolled, and sums in float32. Pixels
and heads are neighbours in memory and make up one axis of rows; a row holds a head's channels.
Nothing but the inputs is kept for the backward pass.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from vrtspike_jax.ops.pallas_assembly import multiply_add
from vrtspike_jax.ops.pallas_launch import launch

# Pairs of frames, and frames of the memory, up to which a pixel fits the registers.
LARGEST_PAIRS, LARGEST_MEMORY = 64, 16
LARGEST_DIM = 64
# Tiles that a program of the backward kernel walks over to sum up the bias's gradient.
STEPS = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the kernels are specialised for.

    Attributes:
        batch: B.
        frames: T, frames of the queries.
        memory: S, frames of the keys and values.
        rows: Pixels times heads.
        heads: Heads.
        dim: Channels of a head.
        biased: Whether the logits have a bias.
        block: Rows of a tile, a power of two; as many as are whole pixels are used.
        warps: Warps of a program.
        interpret: Run on the CPU, for tests.
    """

    batch: int
    frames: int
    memory: int
    rows: int
    heads: int
    dim: int
    biased: bool
    block: int
    warps: int = 4
    interpret: bool = False

    @property
    def width(self) -> int:
        """Channels of a head, padded to what Triton takes."""
        return _width(self.dim)

    @property
    def span(self) -> int:
        """Rows by which tiles are apart: whole pixels, so that heads lie alike in all tiles."""
        return self.block // self.heads * self.heads

    @property
    def tiles(self) -> int:
        """Tiles of one sample."""
        return pl.cdiv(self.rows, self.span)


def _width(dim: int) -> int:
    return max(4, pl.next_power_of_2(dim))


def make_plan(
    q: jax.ShapeDtypeStruct | Array,
    k: jax.ShapeDtypeStruct | Array,
    v: jax.ShapeDtypeStruct | Array,
    biased: bool,
    interpret: bool = False,
) -> Plan | None:
    """Chooses tile sizes; None where the kernels do not fit."""
    b, frames, pixels, heads, dim = q.shape
    memory = k.shape[1]
    fits = (
        frames * memory <= LARGEST_PAIRS
        and memory <= LARGEST_MEMORY
        and dim <= LARGEST_DIM
        and q.dtype == k.dtype == v.dtype
        and q.dtype in (jnp.bfloat16, jnp.float16, jnp.float32)
        and 0 < max(q.size, k.size) < 2**31  # what the kernels count in
    )
    if not fits:
        return None
    # Channels of a thread: keys, values and their gradients of all frames share its registers.
    channels = 8 if memory <= 5 else 4 if memory <= 10 else 2
    block = channels * 32 * Plan.warps // _width(dim)
    block = max(block, pl.next_power_of_2(heads))
    return Plan(b, frames, memory, pixels * heads, heads, dim, biased, block, interpret=interpret)


class _Tile:
    """Some pixels of one sample, with all heads, and how to read and write their channels."""

    def __init__(self, plan: Plan, index: Array):
        self.plan = plan
        self.sample = lax.div(index, plan.tiles)
        slot = lax.iota(jnp.int32, plan.block)
        self.head = lax.rem(slot, plan.heads)
        self.row = lax.rem(index, plan.tiles) * plan.span + slot
        channel = lax.broadcasted_iota(jnp.int32, (1, plan.width), 1)
        self.channel = channel
        valid = (self.row < plan.rows) & (self.sample < plan.batch)
        if plan.span != plan.block:
            valid &= slot < plan.span
        self.mask = jnp.broadcast_to(valid[:, None], (plan.block, plan.width))
        if plan.width != plan.dim:
            self.mask &= jnp.broadcast_to(channel < plan.dim, self.mask.shape)

    def _address(self, ref: Any, frames: int, frame: int) -> Any:
        start = (self.sample * frames + frame) * self.plan.rows
        return ref.at[lax.expand_dims(lax.add(start, self.row), (1,)), self.channel]

    def load(self, ref: Any, frames: int, frame: int) -> Float[Array, "block width"]:
        """Channels of one of `frames` frames in float32; zero where there is none."""
        loaded = plgpu.load(self._address(ref, frames, frame), mask=self.mask, other=0)
        return loaded.astype(jnp.float32)

    def store(self, ref: Any, frames: int, frame: int, value: Array) -> None:
        """Inverse of `load`."""
        plgpu.store(self._address(ref, frames, frame), value.astype(ref.dtype), mask=self.mask)

    def weights(
        self, q: Array, keys: list[Array], bias_ref: Any, frame: int
    ) -> list[Float[Array, " block"]]:
        """Softmax over the memory's frames, for one frame of the queries."""
        logits = [_dot(q, k) for k in keys]
        if bias_ref is not None:
            logits = [
                s + plgpu.load(bias_ref.at[self.head, frame, i]) for i, s in enumerate(logits)
            ]
        peak = functools.reduce(lax.max, logits)
        powers = [lax.exp(lax.sub(s, peak)) for s in logits]
        inverse = 1 / sum(powers)
        return [lax.mul(p, inverse) for p in powers]


def _dot(a: Array, b: Array) -> Float[Array, " block"]:
    return lax.reduce_sum(lax.mul(a, b), (1,))


def _add(total: Array, weight: Float[Array, " block"], x: Array, plan: Plan) -> Array:
    """`total` and `x`, each row times its weight, in multiply-adds."""
    weight = lax.broadcast_in_dim(weight, x.shape, (0,))
    return multiply_add(weight, x, total, plan.interpret)


def _mix(weights: list[Array], values: list[Array], plan: Plan) -> Float[Array, "block width"]:
    """Sum of values, each row times its weight."""
    total = jnp.zeros(values[0].shape, jnp.float32)
    for w, x in zip(weights, values, strict=True):
        total = _add(total, w, x, plan)
    return total


def _forward_kernel(*refs: Any, plan: Plan) -> None:
    q_ref, k_ref, v_ref, *bias, out_ref = refs
    tile = _Tile(plan, pl.program_id(0))
    keys, values = (
        [tile.load(r, plan.memory, s) for s in range(plan.memory)] for r in (k_ref, v_ref)
    )
    for t in range(plan.frames):
        q = tile.load(q_ref, plan.frames, t)
        weights = tile.weights(q, keys, bias[0] if bias else None, t)
        tile.store(out_ref, plan.frames, t, _mix(weights, values, plan))


def _tile_gradients(tile: _Tile, inputs: tuple, outputs: tuple) -> list[Float[Array, " block"]]:
    """Writes a tile's gradients; returns those of its logits, for each pair of frames."""
    plan = tile.plan
    q_ref, k_ref, v_ref, dout_ref, bias_ref = inputs
    dq_ref, dk_ref, dv_ref = outputs
    keys, values = (
        [tile.load(r, plan.memory, s) for s in range(plan.memory)] for r in (k_ref, v_ref)
    )
    zeros = jnp.zeros((plan.block, plan.width), jnp.float32)
    dkeys, dvalues, every = [zeros] * plan.memory, [zeros] * plan.memory, []
    for t in range(plan.frames):
        q, dout = (tile.load(r, plan.frames, t) for r in (q_ref, dout_ref))
        weights = tile.weights(q, keys, bias_ref, t)
        dweights = [_dot(dout, v) for v in values]
        delta = sum(p * d for p, d in zip(weights, dweights, strict=True))
        dlogits = [p * (d - delta) for p, d in zip(weights, dweights, strict=True)]
        tile.store(dq_ref, plan.frames, t, _mix(dlogits, keys, plan))
        dkeys = [_add(a, d, q, plan) for a, d in zip(dkeys, dlogits, strict=True)]
        dvalues = [_add(a, p, dout, plan) for a, p in zip(dvalues, weights, strict=True)]
        every += dlogits
    for s in range(plan.memory):
        tile.store(dk_ref, plan.memory, s, dkeys[s])
        tile.store(dv_ref, plan.memory, s, dvalues[s])
    return every


def _backward_kernel(*refs: Any, plan: Plan) -> None:
    program = pl.program_id(0)
    if not plan.biased:
        _tile_gradients(_Tile(plan, program), (*refs[:4], None), refs[4:])
        return
    *gradients, dbias_ref = refs[5:]

    def step(i: Array, totals: list[Array]) -> list[Array]:
        tile = _Tile(plan, program * STEPS + i)
        # Rows that stick out add nothing: their `dout` is zero.
        dlogits = _tile_gradients(tile, refs[:5], gradients)
        return [a + d for a, d in zip(totals, dlogits, strict=True)]

    zeros = [jnp.zeros((plan.block,), jnp.float32)] * (plan.frames * plan.memory)
    slot = jnp.arange(plan.block, dtype=jnp.int32)
    for pair, total in enumerate(lax.fori_loop(0, STEPS, step, zeros)):
        plgpu.store(dbias_ref.at[program, pair, slot], total)


_call = functools.partial(launch, "temporal_attention", 1)


def _flat(plan: Plan, *arrays: Array) -> list[Array]:
    return [a.reshape(-1, plan.dim) for a in arrays]


def forward(
    plan: Plan,
    q: Float[Array, "b t p heads d"],
    k: Float[Array, "b s p heads d"],
    v: Float[Array, "b s p heads d"],
    *bias: Float[Array, "heads t s"],
) -> Float[Array, "b t p heads d"]:
    """The attended values; see `vrtspike_jax.ops.temporal_attention` for the arguments."""
    bias = [b.astype(jnp.float32) for b in bias]
    shape = jax.ShapeDtypeStruct((q.size // plan.dim, plan.dim), v.dtype)
    programs = plan.batch * plan.tiles
    return _call(_forward_kernel, plan, programs, shape, *_flat(plan, q, k, v), *bias).reshape(
        q.shape
    )


def backward(
    plan: Plan,
    dout: Float[Array, "b t p heads d"],
    q: Float[Array, "b t p heads d"],
    k: Float[Array, "b s p heads d"],
    v: Float[Array, "b s p heads d"],
    *bias: Float[Array, "heads t s"],
) -> tuple[Array, ...]:
    """Gradients of `forward` with respect to queries, keys, values and, if there is one, bias."""
    arrays = _flat(plan, q, k, v)
    outputs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    programs = plan.batch * plan.tiles
    if plan.biased:
        programs = pl.cdiv(programs, STEPS)
        parts = (programs, plan.frames * plan.memory, plan.block)
        outputs.append(jax.ShapeDtypeStruct(parts, jnp.float32))
    inputs = (*arrays, *_flat(plan, dout), *(b.astype(jnp.float32) for b in bias))
    dq, dk, dv, *parts = _call(_backward_kernel, plan, programs, outputs, *inputs)
    gradients = [d.reshape(a.shape) for d, a in ((dq, q), (dk, k), (dv, v))]
    for part in parts:
        # Each slot of a tile is always of the same head; the last ones may be of none.
        total = jnp.sum(part, axis=0)[:, : plan.span]
        total = total.reshape(plan.frames, plan.memory, -1, plan.heads).sum(axis=2)
        gradients.append(total.transpose(2, 0, 1).astype(bias[0].dtype))
    return tuple(gradients)
