"""Backward kernels of window attention; `pallas_attention` launches them and has the formulas."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from vrtspike_jax.ops.attention_tiles import (
    Plan,
    Side,
    bias_tile,
    both_valid,
    exp,
    exp_times,
    held_tiles,
    keys_scaled,
    load_bias,
    logits,
    masked_load,
    program,
    split,
    walk,
)

__all__ = ["bias_kernel", "key_kernel", "query_kernel", "window_kernel"]


def _delta(side: Side, out_ref: Any, dout_ref: Any, column: Array) -> tuple[Array, Array]:
    """The result's gradient, and minus delta, which tensor cores can begin their sums with."""
    dout = side.load(dout_ref, side.key_rows, column)
    out = side.load(out_ref, side.key_rows, column).astype(jnp.float32)
    return dout, -jnp.sum(out * dout.astype(jnp.float32), axis=1)


def query_kernel(*refs: Any, plan: Plan, group: int, biased: bool) -> None:
    """Gradient of the queries, and delta."""
    q_ref, k_ref, v_ref, out_ref, dout_ref, lse_ref, bias_ref, region_ref, outputs = split(
        refs, plan, biased, 6
    )
    dq_ref, delta_ref = outputs
    rows, size = plan.sizes(plan.queries)
    windows, tile, head = program(plan, group, plan.tiles(rows))
    columns = [c + head * plan.dim for c in plan.columns]
    out_column = plan.out_column + head * plan.dim
    loaded = []
    for window in windows:
        side = Side(plan, window, tile, region_ref, rows)
        dout, delta = _delta(side, out_ref, dout_ref, out_column)
        side.store_row(delta_ref, head, delta)
        q = side.load_queries(q_ref, columns[0])
        loaded.append((side, q, dout, side.load_row(lse_ref, head), delta))

    def body(j: Array, carry: list, bias: Array | None) -> list:
        result = []
        for (side, q, dout, lse, delta), dq in zip(loaded, carry, strict=True):
            keys = Side(plan, side.window, j, region_ref, size)
            k = keys.load(k_ref, keys.key_rows, columns[1])
            v = keys.load(v_ref, keys.key_rows, columns[2])
            s = logits(side, keys, q, k, bias)
            if keys.valid is not None:
                s = jnp.where(keys.valid[None, :], s, -jnp.inf)
            p = exp(s, lse[:, None], plan)
            dp = jnp.dot(dout, v.T, preferred_element_type=jnp.float32) + delta[:, None]
            ds = (p * dp).astype(k.dtype)
            result.append(dq + jnp.dot(ds, k, preferred_element_type=jnp.float32))
        return result

    zeros = jnp.zeros(loaded[0][1].shape, jnp.float32)
    start, sizes = [zeros] * group, (rows, size)
    gradients = walk(plan, plan.queries, bias_ref, (head, tile), sizes, body, start)
    for (side, *_), dq in zip(loaded, gradients, strict=True):
        side.store(dq_ref, side.query_rows, columns[0], dq * plan.scale)


def _tile(plan: Plan, key_side: tuple, query_side: tuple, bias: Array | None) -> tuple:
    """P and dS of one tile, rows being keys. The bias comes transposed."""
    (keys, k, v), (side, q, dout, lse, delta) = key_side, query_side
    p = exp(logits(keys, side, k, q, bias), lse[None, :], plan)
    inside = both_valid(keys.valid, side.valid)
    if inside is not None:
        p = jnp.where(inside, p, 0.0)
    dp = jnp.dot(v, dout.T, preferred_element_type=jnp.float32) + delta[None, :]
    # A loop of one step, which the compiler dissolves, but only after XLA has moved transpositions
    # up through operations: that of dS would take P, exponentials included, a second time.
    ds = lax.fori_loop(0, 1, lambda _, p: p * dp, p)
    return p, ds


def key_kernel(*refs: Any, plan: Plan, group: int, biased: bool, packed: bool) -> None:
    """Gradients of keys and values. The bias comes transposed."""
    q_ref, k_ref, v_ref, dout_ref, lse_ref, delta_ref, bias_ref, region_ref, outputs = split(
        refs, plan, biased, 6
    )
    dk_ref, dv_ref = (outputs[-1], outputs[-1]) if packed else outputs
    size, rows = plan.sizes(plan.keys)
    windows, tile, head = program(plan, group, plan.tiles(rows))
    columns = [c + head * plan.dim for c in plan.columns]
    loaded = []
    for window in windows:
        keys = Side(plan, window, tile, region_ref, rows)
        k = keys.load_keys(k_ref, columns[1])
        loaded.append((keys, k, keys.load(v_ref, keys.key_rows, columns[2])))

    def body(i: Array, carry: list, bias: Array | None) -> list:
        result = []
        for (keys, k, v), (dk, dv) in zip(loaded, carry, strict=True):
            side = Side(plan, keys.window, i, region_ref, size)
            q = side.load_queries(q_ref, columns[0], keys_scaled(plan))
            dout = side.load(dout_ref, side.key_rows, plan.out_column + head * plan.dim)
            lse, delta = (side.load_row(ref, head) for ref in (lse_ref, delta_ref))
            p, ds = _tile(plan, (keys, k, v), (side, q, dout, lse, delta), bias)
            dv += jnp.dot(p.astype(dout.dtype), dout, preferred_element_type=jnp.float32)
            dk += jnp.dot(ds.astype(q.dtype), q, preferred_element_type=jnp.float32)
            result.append((dk, dv))
        return result

    zeros = jnp.zeros(loaded[0][1].shape, jnp.float32)
    start = [(zeros, zeros)] * group
    gradients = walk(plan, plan.keys, bias_ref, (head, tile), (rows, size), body, start)
    for (keys, *_), (dk, dv) in zip(loaded, gradients, strict=True):
        keys.store(dk_ref, keys.key_rows, columns[1], dk * plan.scale if keys_scaled(plan) else dk)
        keys.store(dv_ref, keys.key_rows, columns[2], dv)


def window_kernel(*refs: Any, plan: Plan, biased: bool, packed: bool) -> None:
    """Gradients of queries, keys and values of a whole window, and delta if there is a bias.

    Keys, values and their gradients stay in registers while tiles of queries pass by, so that
    each exponential is taken once. Where a program holds a part of the keys at a time, it passes
    over the queries again for each part, and sums their gradient in an array for that. The bias
    comes transposed.
    """
    q_ref, k_ref, v_ref, out_ref, dout_ref, lse_ref, bias_ref, region_ref, outputs = split(
        refs, plan, biased, 6
    )
    dq_ref, dk_ref, dv_ref = outputs[:1] * 3 if packed else outputs[:3]
    window, head = lax.div(pl.program_id(0), plan.heads), lax.rem(pl.program_id(0), plan.heads)
    columns = [c + head * plan.dim for c in plan.columns]
    out_column = plan.out_column + head * plan.dim
    size, rows = plan.sizes(plan.whole)
    held, passes = held_tiles(plan)
    query_scale, key_scale = (1.0, plan.scale) if keys_scaled(plan) else (plan.scale, 1.0)

    def bias(row: Array, column: Array) -> Array | None:
        if not biased:
            return None
        return load_bias(bias_ref, head, row, column, (rows, size), plan.whole.warps)

    if passes > 1:
        sum_ref, delta_ref = outputs[-2:]

        def prepare(tile: Array, _: None) -> None:
            side = Side(plan, window, tile, region_ref, size)
            side.store_row(delta_ref, head, _delta(side, out_ref, dout_ref, out_column)[1])

        lax.fori_loop(0, plan.tiles(size), prepare, None)

    def run(number: Array, _: None) -> None:
        loaded = []
        for tile in range(held):
            keys = Side(plan, window, number * held + tile, region_ref, rows)
            k = keys.load_keys(k_ref, columns[1])
            loaded.append((keys, k, keys.load(v_ref, keys.key_rows, columns[2])))

        def body(tile: Array, carry: list) -> list:
            side = Side(plan, window, tile, region_ref, size)
            if passes > 1:
                dout = side.load(dout_ref, side.key_rows, out_column)
                delta = side.load_row(delta_ref, head)
            else:
                dout, delta = _delta(side, out_ref, dout_ref, out_column)
            q = side.load_queries(q_ref, columns[0], keys_scaled(plan))
            queries = (side, q, dout, side.load_row(lse_ref, head), delta)
            dq = jnp.zeros(q.shape, jnp.float32)
            if passes > 1:
                address = side.sum_address(head)
                before = jnp.broadcast_to(number > 0, q.shape)
                dq = plgpu.load(sum_ref.at[address], mask=before, other=0.0)
            result, following = [], bias(number * held, tile)
            for place, ((keys, k, v), (dk, dv)) in enumerate(zip(loaded, carry, strict=True)):
                # The next tile's bias is on its way while this one is at work.
                here = following
                if place < held - 1:
                    following = bias(number * held + place + 1, tile)
                p, ds = _tile(plan, (keys, k, v), queries, here)
                ds = ds.astype(q.dtype)
                dv += jnp.dot(p.astype(dout.dtype), dout, preferred_element_type=jnp.float32)
                dk += jnp.dot(ds, q, preferred_element_type=jnp.float32)
                dq += jnp.dot(ds.T, k, preferred_element_type=jnp.float32)
                result.append((dk, dv))
            if passes == 1:
                if biased:
                    side.store_row(outputs[-1], head, delta)
                side.store(dq_ref, side.query_rows, columns[0], dq * query_scale)
                return result
            last = jnp.broadcast_to(number == passes - 1, q.shape)
            plgpu.store(sum_ref.at[side.sum_address(head)], dq, mask=~last)
            side.store(dq_ref, side.query_rows, columns[0], dq * query_scale, last)
            return result

        zeros = jnp.zeros(loaded[0][1].shape, jnp.float32)
        gradients = lax.fori_loop(0, plan.tiles(size), body, [(zeros, zeros)] * held)
        for (keys, *_), (dk, dv) in zip(loaded, gradients, strict=True):
            keys.store(dk_ref, keys.key_rows, columns[1], dk * key_scale)
            keys.store(dv_ref, keys.key_rows, columns[2], dv)

    if passes == 1:
        run(jnp.int32(0), None)
        return

    def visible(number: Array, _: None) -> None:
        # What other threads of the program wrote in the pass before is read in this one.
        if not plan.interpret:
            plgpu.debug_barrier()
        run(number, None)

    lax.fori_loop(0, passes, visible, None)


def bias_kernel(*refs: Any, plan: Plan, chunk: int) -> None:
    """Gradient of one tile of the bias, summed over `chunk` windows."""
    q_ref, k_ref, v_ref, dout_ref, lse_ref, delta_ref, bias_ref, region_ref, outputs = split(
        refs, plan, True, 6
    )
    tile, first = pl.program_id(0), pl.program_id(1) * chunk
    tile, head = lax.div(tile, plan.heads), lax.rem(tile, plan.heads)
    rows, size = plan.sizes(plan.bias)
    count = plan.tiles(rows)
    i, j = lax.rem(tile, count), lax.div(tile, count)
    columns = [c + head * plan.dim for c in plan.columns]

    def sides(window: Array) -> tuple[Side, Side]:
        pairs = ((i, rows), (j, size))
        return tuple(Side(plan, window, tile, region_ref, tokens) for tile, tokens in pairs)

    side, keys = sides(first)
    address, inside = bias_tile(side.tokens, keys.tokens, head)
    bias = masked_load(bias_ref.at[address], inside)

    def statistics(step: Array) -> list[Array]:
        return [side.load_row(ref, head, first + step) for ref in (lse_ref, delta_ref)]

    def body(step: Array, carry: tuple) -> tuple:
        total, (lse, delta) = carry
        following = statistics(jnp.minimum(step + 1, chunk - 1))
        here, there = sides(first + step)
        q = here.load_queries(q_ref, columns[0])
        k = there.load(k_ref, there.key_rows, columns[1])
        v = there.load(v_ref, there.key_rows, columns[2])
        dout = here.load(dout_ref, here.key_rows, plan.out_column + head * plan.dim)
        s = logits(here, there, q, k, bias)
        dp = jnp.dot(dout, v.T, preferred_element_type=jnp.float32) + delta[:, None]
        return exp_times(s, lse[:, None], dp, total, plan), following

    start = (jnp.zeros((rows, size), jnp.float32), statistics(jnp.int32(0)))
    total, _ = lax.fori_loop(0, chunk, body, start)
    plgpu.store(outputs[-1].at[(pl.program_id(1), *address)], total, mask=inside)
