"""Backward kernels of window attention; `pallas_attention` launches them and has the formulas.

They keep and exchange minus delta, for tensor cores to start the sums of dout v^T - delta with.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from vrtspike_jax.ops.attention_bias import BiasTiles
from vrtspike_jax.ops.attention_tiles import (
    Plan,
    Side,
    both_valid,
    exp,
    exp_times,
    head_width,
    logits,
    masked_load,
    program,
    split,
    walk,
    walk_queries,
)
from vrtspike_jax.ops.pallas_assembly import opaque

__all__ = ["bias_kernel", "key_kernel", "query_kernel", "window_kernel"]


def _minus_delta(side: Side, out_ref: Any, dout_ref: Any, column: Array) -> tuple[Array, Array]:
    """The result's gradient, and minus delta."""
    dout = side.load(dout_ref, side.key_rows, column)
    out = side.load(out_ref, side.key_rows, column).astype(jnp.float32)
    return dout, -jnp.sum(out * dout.astype(jnp.float32), axis=1)


def query_kernel(*refs: Any, plan: Plan, group: int) -> None:
    """Gradient of the queries, and minus delta."""
    q_ref, k_ref, v_ref, out_ref, dout_ref, lse_ref, bias_ref, region_ref, outputs = split(
        refs, plan, 6
    )
    dq_ref, delta_ref = outputs
    rows, size = plan.sizes(plan.queries)
    windows, tile, head = program(plan, group, plan.tiles(rows))
    columns = [c + head * plan.dim for c in plan.columns]
    out_column = plan.out_column + head * plan.dim
    loaded = []
    for window in windows:
        side = Side(plan, window, tile, region_ref, rows)
        dout, minus_delta = _minus_delta(side, out_ref, dout_ref, out_column)
        side.store_row(delta_ref, head, minus_delta)
        q = side.load(q_ref, side.query_rows, columns[0], plan.scale)
        loaded.append((side, q, dout, side.load_row(lse_ref, head), minus_delta))

    def body(j: Array, carry: list, bias: Array | None) -> list:
        result = []
        for (side, q, dout, lse, minus_delta), dq in zip(loaded, carry, strict=True):
            keys = Side(plan, side.window, j, region_ref, size)
            k = keys.load(k_ref, keys.key_rows, columns[1])
            v = keys.load(v_ref, keys.key_rows, columns[2])
            s = logits(side, keys, q, k, bias)
            if keys.valid is not None:
                s = jnp.where(keys.valid[None, :], s, -jnp.inf)
            p = exp(s, lse[:, None], plan)
            dp = jnp.dot(dout, v.T, preferred_element_type=jnp.float32) + minus_delta[:, None]
            ds = (p * dp).astype(k.dtype)
            result.append(dq + jnp.dot(ds, k, preferred_element_type=jnp.float32))
        return result

    bias = functools.partial(BiasTiles(rows, size, plan.queries.warps).load, bias_ref, head, tile)
    zeros = jnp.zeros(loaded[0][1].shape, jnp.float32)
    gradients = walk(plan.tiles(size), bias, body, [zeros] * group)
    for (side, *_), dq in zip(loaded, gradients, strict=True):
        side.store(dq_ref, side.query_rows, columns[0], dq * plan.scale)


def _tile(plan: Plan, key_side: tuple, query_side: tuple, bias: Array | None) -> tuple:
    """P and dS of one tile, rows being keys. The bias comes transposed."""
    (keys, k, v), (side, q, dout, lse, minus_delta) = key_side, query_side
    p = exp(logits(keys, side, k, q, bias), lse[None, :], plan)
    inside = both_valid(keys, side)
    if inside is not None:
        p = jnp.where(inside, p, 0.0)
    dp = jnp.dot(v, dout.T, preferred_element_type=jnp.float32) + minus_delta[None, :]
    # A loop of one step, which the compiler dissolves, but only after XLA has moved transpositions
    # up through operations: that of dS would take P, exponentials included, a second time.
    ds = lax.fori_loop(0, 1, lambda _, p: p * dp, p)
    return p, ds


def key_kernel(*refs: Any, plan: Plan, group: int, packed: bool) -> None:
    """Gradients of keys and values. The bias comes transposed."""
    q_ref, k_ref, v_ref, dout_ref, lse_ref, delta_ref, bias_ref, region_ref, outputs = split(
        refs, plan, 6
    )
    dk_ref, dv_ref = (outputs[-1], outputs[-1]) if packed else outputs
    size, rows = plan.sizes(plan.keys)
    query_scale, key_scale = plan.scales
    windows, tile, head = program(plan, group, plan.tiles(rows))
    columns = [c + head * plan.dim for c in plan.columns]
    loaded = []
    for window in windows:
        keys = Side(plan, window, tile, region_ref, rows)
        k = keys.load(k_ref, keys.key_rows, columns[1], key_scale)
        loaded.append((keys, k, keys.load(v_ref, keys.key_rows, columns[2])))

    def body(i: Array, carry: list, bias: Array | None) -> list:
        result = []
        for (keys, k, v), (dk, dv) in zip(loaded, carry, strict=True):
            side = Side(plan, keys.window, i, region_ref, size)
            q = side.load(q_ref, side.query_rows, columns[0], query_scale)
            dout = side.load(dout_ref, side.key_rows, plan.out_column + head * plan.dim)
            lse, minus_delta = (side.load_row(ref, head) for ref in (lse_ref, delta_ref))
            p, ds = _tile(plan, (keys, k, v), (side, q, dout, lse, minus_delta), bias)
            dv += jnp.dot(p.astype(dout.dtype), dout, preferred_element_type=jnp.float32)
            dk += jnp.dot(ds.astype(q.dtype), q, preferred_element_type=jnp.float32)
            result.append((dk, dv))
        return result

    bias = functools.partial(BiasTiles(rows, size, plan.keys.warps).load, bias_ref, head, tile)
    zeros = jnp.zeros(loaded[0][1].shape, jnp.float32)
    gradients = walk(plan.tiles(size), bias, body, [(zeros, zeros)] * group)
    for (keys, *_), (dk, dv) in zip(loaded, gradients, strict=True):
        keys.store(dk_ref, keys.key_rows, columns[1], dk * key_scale)
        keys.store(dv_ref, keys.key_rows, columns[2], dv)


def window_kernel(*refs: Any, plan: Plan, packed: bool) -> None:
    """Gradients of queries, keys and values of a whole window, and minus delta if there is a bias.

    Keys, values and their gradients stay in registers while tiles of queries pass by, so that
    each exponential is taken once. The bias comes transposed. With `plan.sums` the last output is
    (2 * heads * dim, windows), the sums over tokens of the gradients of queries and of values.
    """
    q_ref, k_ref, v_ref, out_ref, dout_ref, lse_ref, bias_ref, region_ref, outputs = split(
        refs, plan, 6
    )
    dq_ref, dk_ref, dv_ref = outputs[:1] * 3 if packed else outputs[:3]
    window, head = lax.div(pl.program_id(0), plan.heads), lax.rem(pl.program_id(0), plan.heads)
    columns = [c + head * plan.dim for c in plan.columns]
    size, rows = plan.sizes(plan.whole)
    query_scale, key_scale = plan.scales
    load_bias = functools.partial(BiasTiles(rows, size, plan.whole.warps).load, bias_ref, head)

    def load(tile: int) -> tuple[Side, Array, Array]:
        keys = Side(plan, window, jnp.int32(tile), region_ref, rows)
        k = keys.load(k_ref, keys.key_rows, columns[1], key_scale)
        return keys, k, keys.load(v_ref, keys.key_rows, columns[2])

    def body(loaded: list, tile: Array, state: tuple) -> tuple:
        carry, dq_sum = state
        side = Side(plan, window, tile, region_ref, size)
        dout, minus_delta = _minus_delta(side, out_ref, dout_ref, plan.out_column + head * plan.dim)
        q = side.load(q_ref, side.query_rows, columns[0], query_scale)
        queries = (side, q, dout, side.load_row(lse_ref, head), minus_delta)
        dq = jnp.zeros(q.shape, jnp.float32)
        result = []
        for row, (key_side, (dk, dv)) in enumerate(zip(loaded, carry, strict=True)):
            p, ds = _tile(plan, key_side, queries, load_bias(jnp.int32(row), tile))
            ds = ds.astype(q.dtype)
            dv += jnp.dot(p.astype(dout.dtype), dout, preferred_element_type=jnp.float32)
            dk += jnp.dot(ds, q, preferred_element_type=jnp.float32)
            dq += jnp.dot(ds.T, key_side[1], preferred_element_type=jnp.float32)
            result.append((dk, dv))
        finish(side, dq * query_scale, minus_delta)
        return result, dq_sum + dq if plan.sums else dq_sum

    def finish(side: Side, dq: Array, minus_delta: Array) -> None:
        if plan.biased:
            side.store_row(outputs[1 if packed else 3], head, minus_delta)
        side.store(dq_ref, side.query_rows, columns[0], dq)

    def drop(tile: Array, state: Any = None) -> Any:
        shapes = (size, head_width(plan.dim)), (size,)
        dq, minus_delta = (jnp.zeros(s, jnp.float32) for s in shapes)
        finish(Side(plan, window, tile, region_ref, size), dq, minus_delta)
        return state

    def attend() -> None:
        loaded = [load(tile) for tile in range(plan.tiles(rows))]
        step = functools.partial(body, loaded)
        store(*walk_queries(plan, window, size, step, drop, start))

    def skip() -> None:
        store(*lax.fori_loop(0, plan.tiles(size), drop, start))

    def store(gradients: list, dq_sum: Array | None) -> None:
        # The compiler would keep these addresses in registers all along the loop before: 40 bytes
        # spilled instead of 8, in shifted windows of 320.
        again = opaque(jnp.broadcast_to(window, (rows,)), plan.interpret)
        for tile, (dk, dv) in enumerate(gradients):
            keys = Side(plan, again, jnp.int32(tile), region_ref, rows)
            keys.store(dk_ref, keys.key_rows, columns[1], dk * key_scale)
            keys.store(dv_ref, keys.key_rows, columns[2], dv)
        if plan.sums:
            totals = (dq_sum * query_scale, sum(dv for _, dv in gradients))
            _store_sums(plan, outputs[-1], window, head, totals)

    key_zeros, query_zeros = (
        jnp.zeros((n, head_width(plan.dim)), jnp.float32) for n in (rows, size)
    )
    start = [(key_zeros,) * 2] * plan.tiles(rows), query_zeros if plan.sums else None
    dropped = plan.dropped(window, size)
    if dropped is None or plan.layout.frames > 1:
        attend()
    else:
        # All or none. The compiler would unroll a loop of so few or no steps, and what lies on
        # both sides of a branch takes registers: 182 or 197 instead of 168.
        lax.cond(dropped[0] < dropped[1], skip, attend)


def _store_sums(plan: Plan, ref: Any, window: Array, head: Array, totals: tuple) -> None:
    """Stores sums over a window's tokens, of which those that do not exist have added nothing."""
    for i, total in enumerate(totals):
        channel = lax.iota(jnp.int32, total.shape[1])
        address = ref.at[(i * plan.heads + head) * plan.dim + channel, window]
        inside = None if total.shape[1] == plan.dim else channel < plan.dim
        plgpu.store(address, jnp.sum(total, axis=0), mask=inside)


def bias_kernel(*refs: Any, plan: Plan, chunk: int) -> None:
    """Gradient of one tile of the bias, summed over `chunk` windows."""
    q_ref, k_ref, v_ref, dout_ref, lse_ref, delta_ref, bias_ref, region_ref, outputs = split(
        refs, plan, 6
    )
    tile, first = pl.program_id(0), pl.program_id(1) * chunk
    tile, head = lax.div(tile, plan.heads), lax.rem(tile, plan.heads)
    rows, size = plan.sizes(plan.bias)
    i, j = lax.rem(tile, plan.tiles(rows)), lax.div(tile, plan.tiles(rows))
    columns = [c + head * plan.dim for c in plan.columns]

    def sides(window: Array) -> list[Side]:
        return [Side(plan, window, t, region_ref, n) for t, n in ((i, rows), (j, size))]

    side, keys = sides(first)
    inside = both_valid(side, keys)
    address = (head, lax.expand_dims(side.token, (1,)), lax.expand_dims(keys.token, (0,)))
    bias = masked_load(bias_ref.at[address], inside)

    def statistics(step: Array) -> list[Array]:
        return [side.load_row(ref, head, first + step) for ref in (lse_ref, delta_ref)]

    def body(step: Array, carry: tuple) -> tuple:
        total, (lse, minus_delta) = carry
        following = statistics(jnp.minimum(step + 1, chunk - 1))
        here, there = sides(first + step)
        q = here.load(q_ref, here.query_rows, columns[0], plan.scale)
        k = there.load(k_ref, there.key_rows, columns[1])
        v = there.load(v_ref, there.key_rows, columns[2])
        dout = here.load(dout_ref, here.key_rows, plan.out_column + head * plan.dim)
        s = logits(here, there, q, k, bias)
        # The product's sums do not start with it here: moves replaced the additions one for one,
        # and stood before the product (452 us on an H100 instead of 439).
        dp = jnp.dot(dout, v.T, preferred_element_type=jnp.float32) - (-minus_delta)[:, None]
        return exp_times(s, lse[:, None], dp, total, plan), following

    start = (jnp.zeros((rows, size), jnp.float32), statistics(jnp.int32(0)))
    dropped = plan.is_dropped([first], i, rows)
    steps = chunk
    if dropped is not None and plan.layout.neighbours % chunk == 0:
        # No choice: between two constants, Pallas lowers that in 64 bits.
        steps = chunk * jnp.int32(~dropped)
    total, _ = lax.fori_loop(0, steps, body, start)
    plgpu.store(outputs[-1].at[(pl.program_id(1), *address)], total, mask=inside)
