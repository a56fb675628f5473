"""GEGLU's gate as Triton kernels, forward and backward, which read and write each array once.

With P and slope as in `pallas_gelu`, and a and c with their biases, y = a P(a) c and

    da = dy c slope(a)      dc = dy a P(a)      dbias = sums of da and dc over rows
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from vrtspike_jax.ops import pallas_gelu, pallas_norm, pallas_rows
from vrtspike_jax.ops.pallas_launch import launch
from vrtspike_jax.ops.pallas_norm import Plan
from vrtspike_jax.ops.pallas_rows import Piece, Tile, vector


def make_plan(rows: int, hidden: int, interpret: bool = False) -> Plan:
    """Chooses tile sizes; the plan's channels are the result's."""
    return pallas_norm.make_plan(rows, rows, hidden, interpret=interpret)


def _cut(plan: Plan) -> list[tuple[Piece, Piece]]:
    """Pieces of the channels of a, and the same ones of c."""
    return [
        (piece, (plan.channels + piece[0], *piece[1:]))
        for piece in pallas_rows.pieces(plan.channels, 256)
    ]


def _load(tile: Tile, packed_ref: Any, bias_ref: Any, piece: Piece) -> Array:
    return tile.load(packed_ref, piece).astype(jnp.float32) + vector(bias_ref, piece)


def _forward_kernel(packed_ref: Any, bias_ref: Any, y_ref: Any, *, plan: Plan) -> None:
    tile = Tile(plan, pl.program_id(0))
    for first, second in _cut(plan):
        a, c = (_load(tile, packed_ref, bias_ref, piece) for piece in (first, second))
        tile.store(y_ref, first, pallas_gelu.gelu(a, plan.interpret) * c)


def _backward_kernel(
    packed_ref: Any, bias_ref: Any, dy_ref: Any, dpacked_ref: Any, sums_ref: Any, *, plan: Plan
) -> None:
    program, cut = pl.program_id(0), _cut(plan)

    def step(i: Array, totals: list[Array]) -> list[Array]:
        tile, terms = Tile(plan, program * plan.steps + i), []
        for first, second in cut:
            a, c = (_load(tile, packed_ref, bias_ref, piece) for piece in (first, second))
            dy = tile.load(dy_ref, first).astype(jnp.float32)
            cumulative = pallas_gelu.cumulative(a, plan.interpret)
            da = dy * c * pallas_gelu.slope(a, cumulative, plan.interpret)
            dc = dy * a * cumulative
            for piece, value in ((first, da), (second, dc)):
                tile.store(dpacked_ref, piece, value)
                # Rows that stick out add nothing: what they load of dy is zero.
                terms.append(value)
        return [total + term for total, term in zip(totals, terms, strict=True)]

    # Summed over rows after the loop, not in it: there a thread adds to its own registers alone.
    ordered = [piece for both in cut for piece in both]
    zeros = [jnp.zeros((plan.block, width), jnp.float32) for _, width, _ in ordered]
    totals = lax.fori_loop(0, plan.steps, step, zeros)
    for piece, total in zip(ordered, totals, strict=True):
        channel = piece[0] + lax.iota(jnp.int32, piece[1])
        address = sums_ref.at[channel, program]
        plgpu.store(address, jnp.sum(total, axis=0), mask=pallas_rows.inside(piece))


def forward(
    plan: Plan, packed: Float[Array, "b ... twice"], bias: Float[Array, " twice"]
) -> Float[Array, "b ... hidden"]:
    """The gate; its plan is the backward pass's."""
    plan = dataclasses.replace(plan, steps=1)
    rows = packed.reshape(plan.rows, -1)
    output = jax.ShapeDtypeStruct((plan.rows, plan.channels), packed.dtype)
    inputs = rows, bias.astype(jnp.float32)
    y = launch("gelu_gate", 1, _forward_kernel, plan, plan.programs, output, *inputs)
    return y.reshape(*packed.shape[:-1], plan.channels)


def backward(
    plan: Plan, packed: Array, bias: Array, dy: Array
) -> tuple[Float[Array, "b ... twice"], Float[Array, " twice"]]:
    """Gradients of `forward` with respect to `packed` and `bias`."""
    rows = packed.reshape(plan.rows, -1)
    outputs = [
        jax.ShapeDtypeStruct(rows.shape, packed.dtype),
        # Programs last: along rows XLA sums with a block for each row, down columns with very few.
        jax.ShapeDtypeStruct((rows.shape[1], plan.programs), jnp.float32),
    ]
    inputs = rows, bias.astype(jnp.float32), dy.reshape(plan.rows, -1)
    found = launch("gelu_gate", 2, _backward_kernel, plan, plan.programs, outputs, *inputs)
    dpacked, sums = found
    return dpacked.reshape(packed.shape), jnp.sum(sums, axis=1).astype(bias.dtype)
