"""Window attention as Triton kernels that keep no N x N logits, forward and backward.

With S = q k^T + bias + shift mask, P = softmax(S) and out = P v, the forward kernel saves the
log-sum-exp L of each row of S; the backward kernels rebuild P = exp(S - L) tile by tile (Dao et
al., FlashAttention-2, algorithms 1 and 2):

    delta = rowsum(dout * out)       dS = P * (dout v^T - delta)
    dq = dS k      dk = dS^T q      dv = P^T dout      dbias = sum of dS over windows

Head dimensions are tiny here (16 to 32), so time goes into the elementwise work on S, not into
the products: exponentials are base 2, and one program handles several windows for each tile of
the bias that it loads. Where the gradients of a window's keys and values fit a program's
registers, one kernel computes those of the queries too, from the same exponentials; larger
windows need a kernel for queries and one for keys and values. The bias gradient has a kernel of
its own, whose programs each own one tile of it and walk over a share of the windows: no atomics,
the same result every time. Between kernels delta is stored as minus delta.

Where the layout says that results of some frames are not used, programs for tiles of such queries
store zeros and leave, and the backward kernels of whole windows and of the bias pass over them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from vrtspike_jax.ops.attention_bias import BiasTiles
from vrtspike_jax.ops.attention_gradients import (
    bias_kernel,
    key_kernel,
    query_kernel,
    window_kernel,
)
from vrtspike_jax.ops.attention_tiles import (
    DROPPED_LSE,
    Launch,
    Plan,
    Side,
    exp,
    exp2,
    head_width,
    logits,
    make_plan,
    program,
    split,
    walk,
)
from vrtspike_jax.ops.carried_bias import row_sum
from vrtspike_jax.ops.pallas_assembly import LOG2_E
from vrtspike_jax.ops.window_layout import PackedWindows

__all__ = ["Launch", "Plan", "backward", "forward", "make_plan", "run_backward", "run_forward"]

# The bias gradient splits its windows among about this many programs.
BIAS_PROGRAMS = 1200


def _forward_kernel(*refs: Any, plan: Plan, group: int) -> None:
    q_ref, k_ref, v_ref, bias_ref, region_ref, outputs = split(refs, plan, 3)
    out_ref, lse_ref = outputs[-2:]
    rows, size = plan.sizes(plan.forward)
    windows, tile, head = program(plan, group, plan.tiles(rows))
    columns = [c + head * plan.dim for c in plan.columns]
    out_column = plan.out_column + head * plan.dim

    def load() -> list[tuple[Side, Array]]:
        sides = [Side(plan, window, tile, region_ref, rows) for window in windows]
        return [(s, s.load(q_ref, s.query_rows, columns[0], plan.scale)) for s in sides]

    def body(loaded: list, j: Array, carry: list, bias: Array | None) -> list:
        result = []
        for (side, q), (peak, total, out) in zip(loaded, carry, strict=True):
            keys = Side(plan, side.window, j, region_ref, size)
            k = keys.load(k_ref, keys.key_rows, columns[1])
            s = logits(side, keys, q, k, bias)
            if keys.valid is not None:
                s = jnp.where(keys.valid[None, :], s, -jnp.inf)
            new_peak = jnp.maximum(peak, jnp.max(s, axis=1) * LOG2_E)
            p = exp(s, new_peak[:, None], plan)
            rescale = exp2(peak - new_peak, plan)
            v = keys.load(v_ref, keys.key_rows, columns[2])
            product = jnp.dot(p.astype(v.dtype), v, preferred_element_type=jnp.float32)
            out = out * rescale[:, None] + product
            result.append((new_peak, total * rescale + jnp.sum(p, axis=1), out))
        return result

    def attend() -> None:
        loaded = load()
        bias = functools.partial(tiles.load, bias_ref, head, tile)
        start = (row - jnp.inf, row, zeros)
        results = walk(plan.tiles(size), bias, functools.partial(body, loaded), [start] * group)
        for (side, _), (peak, total, out) in zip(loaded, results, strict=True):
            side.store(out_ref, side.key_rows, out_column, out / total[:, None])
            side.store_row(lse_ref, head, peak + jnp.log2(total))

    def drop() -> None:
        for window in windows:
            side = Side(plan, window, tile, region_ref, rows)
            side.store(out_ref, side.key_rows, out_column, zeros)
            side.store_row(lse_ref, head, row + DROPPED_LSE)

    tiles = BiasTiles(rows, size, plan.forward.warps)
    row = jnp.zeros((rows,), jnp.float32)
    zeros = jnp.zeros((rows, head_width(plan.dim)), jnp.float32)
    dropped = plan.is_dropped(windows, tile, rows)
    attend() if dropped is None else lax.cond(dropped, drop, attend)


def _call(
    kernel: Any,
    plan: Plan,
    launch: Launch,
    grid: tuple,
    out_shape: Any,
    arrays: list,
    aliases: dict | None = None,
) -> Any:
    """Launches a kernel over `arrays`, of which None ones are left out."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        input_output_aliases=aliases or {},
        compiler_params=plgpu.CompilerParams(num_warps=launch.warps, num_stages=launch.stages),
        interpret=plan.interpret,
        name=getattr(kernel, "func", kernel).__name__.strip("_"),
    )(*[a for a in arrays if a is not None])


def _grid(plan: Plan, launch: Launch, size: int) -> tuple[int, tuple[int]]:
    """Windows of a program, and the number of programs, for tiles of `size` tokens."""
    group = _divisor(plan.layout.windows, launch.group)
    return group, (plan.layout.windows // group * plan.tiles(size) * plan.heads,)


def _row_shape(plan: Plan) -> jax.ShapeDtypeStruct:
    count = plan.layout.windows * plan.layout.tokens
    return jax.ShapeDtypeStruct((plan.heads, count), jnp.float32)


def forward(
    plan: Plan,
    arrays: tuple[Array, Array, Array],
    bias: Float[Array, "heads n n"] | None,
    regions: Int[Array, "windows n"] | None,
    out: Array | None = None,
) -> tuple[Array, Float[Array, "heads tokens"]]:
    """Attention of every window.

    Args:
        plan: Layout and sizes.
        arrays: Queries, keys and values as (rows, channels); may be one packed array, thrice.
        bias: Added to the logits, float32.
        regions: For `PackedWindows` with shift.
        out: Array to write into (and reuse), or None for a new one of heads * dim channels.

    Returns:
        The result, and the base-2 log-sum-exp of the logits.
    """
    group, grid = _grid(plan, plan.forward, plan.sizes(plan.forward)[0])
    # The compiler would have a loop of its own for either kind of window, in more registers.
    plan = dataclasses.replace(plan, compare_all=True)
    kernel = functools.partial(_forward_kernel, plan=plan, group=group)
    inputs = [*arrays, _packed(_like(bias, arrays), plan, plan.forward), regions, out]
    aliases = None
    if out is not None:
        aliases = {sum(a is not None for a in inputs) - 1: 0}
        shape = jax.ShapeDtypeStruct(out.shape, out.dtype)
    else:
        shape = jax.ShapeDtypeStruct((arrays[2].shape[0], plan.heads * plan.dim), arrays[2].dtype)
    shapes = [shape, _row_shape(plan)]
    return _call(kernel, plan, plan.forward, grid, shapes, inputs, aliases)


def _like(bias: Array | None, arrays: tuple) -> Array | None:
    """The bias as precise as what it is added to: reading it takes much of the kernels' time."""
    return None if bias is None else bias.astype(arrays[0].dtype)


def _packed(
    bias: Array | None, plan: Plan, launch: Launch, transposed: bool = False
) -> Array | None:
    """Tiles of the bias, for kernels whose rows are queries; or keys, if `transposed`."""
    if bias is None:
        return None
    rows, columns = plan.sizes(launch)
    if transposed:
        bias, rows, columns = jnp.swapaxes(bias, 1, 2), columns, rows
    return BiasTiles(rows, columns, launch.warps).pack(bias)


def backward(
    plan: Plan,
    arrays: tuple[Array, Array, Array],
    bias: Float[Array, "heads n n"] | None,
    regions: Int[Array, "windows n"] | None,
    residuals: tuple[Array, Array],
    dout: Array,
) -> tuple[Any, Float[Array, "heads n n"] | None, Float[Array, " c3"] | None]:
    """Gradients of `forward`.

    Args:
        plan: As in `forward`.
        arrays: As in `forward`.
        bias: As in `forward`.
        regions: As in `forward`.
        residuals: The result and the log-sum-exp of `forward`.
        dout: Gradient of the result, an array of the same shape.

    Returns:
        Gradients of queries, keys and values (one array if `arrays` is one packed array thrice)
        and of the bias; and, if the plan says so, the sum over rows of the former.
    """
    out, lse = residuals
    bias = _like(bias, arrays)
    gradients = _split_gradients if plan.whole is None else _whole_gradients
    gradients, minus_delta, sums = gradients(plan, arrays, bias, regions, out, dout, lse)
    if bias is None:
        return gradients, None, sums
    dbias = _bias_gradient(plan, arrays, bias, regions, minus_delta, lse, dout)
    return gradients, dbias, sums


def _bias_gradient(
    plan: Plan,
    arrays: tuple,
    bias: Array,
    regions: Array | None,
    minus_delta: Array,
    lse: Array,
    dout: Array,
) -> Float[Array, "heads n n"]:
    rows, columns = plan.sizes(plan.bias)
    tiles = plan.heads * plan.tiles(rows) * plan.tiles(columns)
    parts = _divisor(plan.layout.windows, max(1, BIAS_PROGRAMS // tiles))
    kernel = functools.partial(bias_kernel, plan=plan, chunk=plan.layout.windows // parts)
    shape = jax.ShapeDtypeStruct((parts, *bias.shape), jnp.float32)
    inputs = [*arrays, dout, lse, minus_delta, bias, regions]
    return jnp.sum(_call(kernel, plan, plan.bias, (tiles, parts), shape, inputs), axis=0)


def _whole_gradients(
    plan: Plan,
    arrays: tuple,
    bias: Array | None,
    regions: Array | None,
    out: Array,
    dout: Array,
    lse: Array,
) -> tuple[Any, Array | None, Array | None]:
    """Gradients of `arrays`, by one kernel, minus delta for that of the bias, and `plan.sums`."""
    packed = arrays[0] is arrays[1]
    transposed = _packed(bias, plan, plan.whole, transposed=True)
    kernel = functools.partial(window_kernel, plan=plan, packed=packed)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays[: 1 if packed else 3]]
    count = len(shapes)
    shapes += [_row_shape(plan)] if plan.biased else []
    if plan.sums:
        # Windows last: XLA sums along rows faster than down columns.
        channels = plan.heads * plan.dim
        shapes += [jax.ShapeDtypeStruct((2 * channels, plan.layout.windows), jnp.float32)]
    grid = (plan.layout.windows * plan.heads,)
    inputs = [*arrays, out, dout, lse, transposed, regions]
    results = _call(kernel, plan, plan.whole, grid, shapes, inputs)
    gradients = results[0] if packed else tuple(results[:count])
    minus_delta, sums = results[count] if plan.biased else None, None
    if plan.sums:
        dq, dv = jnp.split(jnp.sum(results[-1], axis=1), 2)
        # What a bias of the keys adds to a query's logits, it adds to all of them: no gradient.
        sums = jnp.concatenate([dq, jnp.zeros_like(dq), dv])
    return gradients, minus_delta, sums


def _split_gradients(
    plan: Plan,
    arrays: tuple,
    bias: Array | None,
    regions: Array | None,
    out: Array,
    dout: Array,
    lse: Array,
) -> tuple[Any, Array, Array | None]:
    """As `_whole_gradients`, by one kernel for queries and one for keys and values."""
    packed = arrays[0] is arrays[1]
    group, grid = _grid(plan, plan.queries, plan.sizes(plan.queries)[0])
    like = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    kernel = functools.partial(query_kernel, plan=plan, group=group)
    inputs = [*arrays, out, dout, lse, _packed(bias, plan, plan.queries), regions]
    shapes = [like[0], _row_shape(plan)]
    dq, minus_delta = _call(kernel, plan, plan.queries, grid, shapes, inputs)
    transposed = _packed(bias, plan, plan.keys, transposed=True)
    inputs = [*arrays, dout, lse, minus_delta, transposed, regions]
    group, grid = _grid(plan, plan.keys, plan.sizes(plan.keys)[1])
    kernel = functools.partial(key_kernel, plan=plan, group=group, packed=packed)
    if not packed:
        return (dq, *_call(kernel, plan, plan.keys, grid, like[1:], inputs)), minus_delta, None
    count = sum(a is not None for a in inputs)
    gradient = _call(kernel, plan, plan.keys, grid, like[0], [*inputs, dq], {count: 0})
    return gradient, minus_delta, row_sum(gradient) if plan.sums else None


def run_forward(plans: tuple, arrays: tuple, bias: Any, regions: Any) -> tuple[Array, list]:
    """`forward` on the arrays that the public operations take.

    Args:
        plans: One plan for windows: arrays (M, N, heads, d). For feature maps (B, T, H, W, 3C),
            the plan of self attention and, if there is a second map, that of mutual attention.
        arrays: Queries, keys, values; or the packed map and the mutual one or None.
        bias: As in `forward`.
        regions: As in `forward`.

    Returns:
        The result, and the log-sum-exp of each plan.
    """
    if isinstance(plans[0].layout, PackedWindows):
        out, lse = forward(plans[0], _rows(arrays), bias, regions)
        return out.reshape(arrays[0].shape), [lse]
    maps = _rows([a for a in arrays if a is not None])
    b, t, h, w, c3 = arrays[0].shape
    out, lses = None, []
    if len(plans) == 2:
        out = lax.empty((maps[0].shape[0], 2 * c3 // 3), maps[0].dtype)
    for plan, packed, table in zip(plans, maps, (bias, None), strict=False):
        out, lse = forward(plan, (packed,) * 3, table, None, out)
        lses.append(lse)
    return out.reshape(b, t, h, w, -1), lses


def run_backward(
    plans: tuple, arrays: tuple, bias: Any, regions: Any, out: Array, lses: list, dout: Array
) -> tuple[tuple, Any, tuple]:
    """`backward` on the arrays that the public operations take, with the sums of each plan."""
    if isinstance(plans[0].layout, PackedWindows):
        out, dout = _rows([out, dout])
        gradients, dbias, _ = backward(plans[0], _rows(arrays), bias, regions, (out, lses[0]), dout)
        return tuple(g.reshape(arrays[0].shape) for g in gradients), dbias, ()
    maps = _rows([a for a in arrays if a is not None])
    shape = arrays[0].shape
    out, dout = (a.reshape(-1, a.shape[-1]) for a in (out, dout))
    gradients, dbias, sums = [], None, []
    for plan, packed, table, lse in zip(plans, maps, (bias, None), lses, strict=False):
        gradient, dtable, total = backward(plan, (packed,) * 3, table, None, (out, lse), dout)
        gradients.append(gradient.reshape(shape))
        sums += [total] if plan.sums else []
        dbias = dtable if dbias is None else dbias
    return tuple(gradients + [None] * (2 - len(gradients))), dbias, tuple(sums)


def _rows(arrays: Any) -> list[Array]:
    """Flattens windows (M, N, heads, d) or maps (B, T, H, W, C) to (rows, channels)."""
    if arrays[0].ndim == 4:
        return [a.reshape(-1, a.shape[2] * a.shape[3]) for a in arrays]
    return [a.reshape(-1, a.shape[-1]) for a in arrays]


def _divisor(number: int, most: int) -> int:
    """Largest divisor of `number` that is at most `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)
