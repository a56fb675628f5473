"""Flow-guided deformable 3x3 convolution as Triton kernels that store no im2col columns.

A program owns a tile of output pixels and walks over the 9 taps and over quads of deformable
groups. For each it computes where to sample, gathers four corners, and multiplies the samples
with the tap's filter at once. Backward has two kernels: one for the input, offsets and modulation,
which adds into a float32 copy of the input, and one for the filter, whose programs own one tap and
quad and walk over pixels.

The input is stored group-major with a group's channels padded to a power of two, so that one
corner is one 16-byte read (8 channels in bfloat16), and neighbouring pixels' reads are adjacent.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from vrtspike_jax.ops.deform_samples import TAPS, Plan, Samples, make_plan, pixel_tile
from vrtspike_jax.ops.pallas_assembly import multiply_add
from vrtspike_jax.ops.pallas_atomics import relaxed_add

__all__ = ["Plan", "backward", "forward", "make_plan"]

# The filter's gradient splits the pixels among about this many programs for each tap and quad.
WEIGHT_PARTS = 128
# Features, at least, of a tile of the filter's gradient: the rows of a product that four warps make
# together. Each warp on its own would compute all samples.
WEIGHT_ROWS = 64


def _split(refs: tuple, plan: Plan) -> tuple:
    """Sorts a kernel's references: input, raw offsets and flow (or None), then the rest."""
    if plan.magnitude is None:
        return (*refs[:2], None), refs[2:]
    return refs[:3], refs[3:]


def _walk(plan: Plan, body: Any, carry: Any) -> Any:
    """Runs `body(tap, quad, carry)` over all quads and taps.

    Taps go innermost: they sample the same channels nearby, which the first-level cache holds.
    """
    return lax.fori_loop(
        0, TAPS * plan.quads, lambda i, c: body(lax.rem(i, TAPS), lax.div(i, TAPS), c), carry
    )


def _features(plan: Plan, least: int = 16) -> int:
    """Output features, padded to a power of two."""
    return max(least, pl.next_power_of_2(plan.features))


def _feature_tile(ref: Any, flat: Array, plan: Plan, least: int = 16) -> tuple[Any, Array | None]:
    """Address and mask of a tile's output features, padded as in `_features`."""
    width = _features(plan, least)
    feature = jnp.arange(width, dtype=jnp.int32)
    mask = None
    if width != plan.features:
        mask = jnp.broadcast_to(feature < plan.features, (plan.pixels, width))
    if plan.total % plan.pixels:
        inside = jnp.broadcast_to((flat < plan.total)[:, None], (plan.pixels, width))
        mask = inside if mask is None else mask & inside
    return ref.at[flat[:, None], feature[None, :]], mask


def _weight_tile(ref: Any, tap: Array, quad: Array) -> Float[Array, "columns features"]:
    _, _, rows, columns = ref.shape
    row, column = (jnp.arange(size, dtype=jnp.int32) for size in (rows, columns))
    return plgpu.load(ref.at[tap, quad, row[:, None], column[None, :]])


def _forward_kernel(*refs: Any, plan: Plan) -> None:
    inputs, (weight_ref, out_ref) = _split(refs, plan)
    pixel = pixel_tile(plan, pl.program_id(0))

    def body(tap: Array, quad: Array, out: Array) -> Array:
        columns = Samples(plan, inputs, pixel, tap, quad).columns(weight_ref.dtype)
        weight = _weight_tile(weight_ref, tap, quad)
        return out + jnp.dot(columns, weight, preferred_element_type=jnp.float32)

    address, mask = _feature_tile(out_ref, pixel[0], plan)
    out = _walk(plan, body, jnp.zeros((plan.pixels, weight_ref.shape[3]), jnp.float32))
    plgpu.store(address, out.astype(out_ref.dtype), mask=mask)


def _input_kernel(*refs: Any, plan: Plan) -> None:
    """Gradients of the input (added to), of the raw offsets and of the flow."""
    inputs, (weight_ref, dout_ref, _, *outputs) = _split(refs, plan)
    dx_ref, draw_ref = outputs[:2]
    pixel = pixel_tile(plan, pl.program_id(0))
    address, mask = _feature_tile(dout_ref, pixel[0], plan)
    dout = plgpu.load(address, mask=mask, other=None if mask is None else 0)

    def body(tap: Array, quad: Array, dflow: list) -> list:
        weight = _weight_tile(weight_ref, tap, quad)
        dcolumns = jnp.dot(dout, weight.T, preferred_element_type=jnp.float32)
        dcolumns = dcolumns.reshape(plan.pixels, plan.quad, plan.width)
        samples = Samples(plan, inputs, pixel, tap, quad)
        weights = samples.weights()
        products = []
        for corner, weight in enumerate(weights):
            value = (weight * samples.modulation)[:, :, None] * dcolumns
            if samples.valid is not None:
                value = jnp.where(samples.valid[:, None, None], value, 0.0)
            relaxed_add(dx_ref, samples.index(corner), value)
            product = jnp.sum(dcolumns * samples.gather(corner), axis=2)
            products.append(jnp.where(samples.corners[corner][1], product, 0.0))
        gradients = _raw_gradients(samples, products)
        for index, gradient in zip(samples.parts, gradients[2:], strict=True):
            plgpu.store(draw_ref.at[index], gradient.astype(draw_ref.dtype), mask=samples.mask)
        if plan.magnitude is None:
            return dflow
        source = quad * plan.quad // (plan.groups // plan.sources)
        return [
            total + jnp.where(source == s, jnp.sum(gradient, axis=1), 0.0)
            for s in range(plan.sources)
            for total, gradient in zip(dflow[2 * s : 2 * s + 2], gradients[:2], strict=True)
        ]

    zeros = jnp.zeros((plan.pixels,), jnp.float32)
    dflow = _walk(plan, body, [zeros] * (0 if plan.magnitude is None else 2 * plan.sources))
    inside = pixel[0] < plan.total if plan.total % plan.pixels else None
    for i, total in enumerate(dflow):  # (dy, dx) of each source; flow is (x, y).
        plgpu.store(outputs[2].at[pixel[0], i // 2, 1 - i % 2], total, mask=inside)


def _raw_gradients(samples: Samples, products: list[Array]) -> list[Array]:
    """Gradients of offset y, x (before `raw`), then of the three parts of `raw`."""
    top_left, top_right, bottom_left, bottom_right = products
    plan, down, across = samples.plan, samples.down, samples.across
    modulation = samples.modulation
    top, bottom = top_right - top_left, bottom_right - bottom_left
    upper = multiply_add(across, top, top_left, plan.interpret)
    lower = multiply_add(across, bottom, bottom_left, plan.interpret)
    dy = modulation * (lower - upper)
    dx = modulation * multiply_add(down, bottom - top, top, plan.interpret)
    dmodulation = multiply_add(down, lower - upper, upper, plan.interpret)
    if plan.magnitude is None:
        return [dy, dx, dy, dx, dmodulation]
    slopes = [plan.magnitude * multiply_add(-t, t, 1.0, plan.interpret) for t in samples.tanh]
    dmodulation *= multiply_add(-modulation, modulation, modulation, plan.interpret)
    return [dy, dx, dy * slopes[0], dx * slopes[1], dmodulation]


def _weight_kernel(*refs: Any, plan: Plan, chunk: int) -> None:
    """Gradient of one tap's filter for one quad, over `chunk` tiles of pixels."""
    inputs, (dout_ref, dweight_ref) = _split(refs, plan)
    # Programs that share pixels are neighbours, so that they share the cache.
    part, step = (
        lax.div(pl.program_id(0), TAPS * plan.quads),
        lax.rem(pl.program_id(0), TAPS * plan.quads),
    )
    tap, quad = lax.div(step, plan.quads), lax.rem(step, plan.quads)
    _, _, _, columns, features = dweight_ref.shape

    def body(i: Array, total: Array) -> Array:
        pixel = pixel_tile(plan, part * chunk + i)
        address, mask = _feature_tile(dout_ref, pixel[0], plan, WEIGHT_ROWS)
        dout = plgpu.load(address, mask=mask, other=None if mask is None else 0)
        samples = Samples(plan, inputs, pixel, tap, quad).columns(dout.dtype)
        # The transposed operand is the one that comes from memory. Of samples, XLA would transpose
        # all that they are computed from, and then each warp compute every one of them.
        return total + jnp.dot(dout.T, samples, preferred_element_type=jnp.float32)

    total = lax.fori_loop(0, chunk, body, jnp.zeros((features, columns), jnp.float32))
    column, feature = (jnp.arange(size, dtype=jnp.int32) for size in (columns, features))
    plgpu.store(dweight_ref.at[part, tap, quad, column[None, :], feature[:, None]], total)


def _call(kernel: Any, plan: Plan, grid: int, shape: Any, arrays: list, **options: Any) -> Any:
    aliases = options.pop("aliases", {})
    return pl.pallas_call(
        functools.partial(kernel, plan=plan, **options),
        grid=(grid,),
        out_shape=shape,
        input_output_aliases=aliases,
        compiler_params=plgpu.CompilerParams(num_warps=plan.warps, num_stages=plan.stages),
        interpret=plan.interpret,
        name="deform" + kernel.__name__,
    )(*[a for a in arrays if a is not None])


def _pad_last(x: Array, width: int) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])


def _group_major(x: Float[Array, "n h w c"], plan: Plan) -> Float[Array, "rows width"]:
    """The input as the kernels read it."""
    x = _pad_last(x.reshape(*plan.size, plan.groups, plan.channels), plan.width)
    return x.transpose(0, 3, 1, 2, 4).reshape(-1, plan.width)


def _pack_weight(weight: Float[Array, "9 c f"], plan: Plan) -> Float[Array, "9 quads rows columns"]:
    """The filter as the kernels read it."""
    weight = _pad_last(weight, _features(plan))
    weight = weight.reshape(TAPS, plan.groups, plan.channels, -1)
    weight = jnp.pad(weight, [(0, 0), (0, 0), (0, plan.width - plan.channels), (0, 0)])
    return weight.reshape(TAPS, plan.quads, plan.quad * plan.width, -1)


def forward(
    plan: Plan,
    x: Float[Array, "n h w c"],
    raw: Float[Array, "n h w quads 9 3 quad"],
    flow: Float[Array, "n h w s 2"] | None,
    weight: Float[Array, "9 c f"],
) -> Float[Array, "n h w f"]:
    """Deformable convolution without bias; `raw` is (y, x, modulation) of each tap and group."""
    inputs = _inputs(plan, x, raw, flow)
    weight = _pack_weight(weight.astype(x.dtype), plan)
    shape = jax.ShapeDtypeStruct((plan.total, plan.features), x.dtype)
    out = _call(_forward_kernel, plan, plan.tiles, shape, [*inputs, weight])
    return out.reshape(*plan.size, plan.features)


def _inputs(plan: Plan, x: Array, raw: Array, flow: Array | None) -> list[Array | None]:
    raw = raw.reshape(plan.total, plan.quads, TAPS, 3, plan.quad)
    flow = None if flow is None else flow.reshape(plan.total, plan.sources, 2)
    return [_group_major(x, plan), raw, flow]


def backward(
    plan: Plan,
    x: Float[Array, "n h w c"],
    raw: Float[Array, "n h w quads 9 3 quad"],
    flow: Float[Array, "n h w s 2"] | None,
    weight: Float[Array, "9 c f"],
    dout: Float[Array, "n h w f"],
) -> tuple[Array, Array, Array | None, Array]:
    """Gradients of `forward` with respect to x, raw, flow and weight."""
    inputs = _inputs(plan, x, raw, flow)
    dout = dout.reshape(plan.total, plan.features)
    shapes = [
        jax.ShapeDtypeStruct(inputs[0].shape, jnp.float32),
        jax.ShapeDtypeStruct(inputs[1].shape, raw.dtype),
    ]
    if flow is not None:
        shapes.append(jax.ShapeDtypeStruct(inputs[2].shape, jnp.float32))
    zeros = jnp.zeros(shapes[0].shape, jnp.float32)
    arrays = [*inputs, _pack_weight(weight.astype(x.dtype), plan), dout, zeros]
    position = sum(a is not None for a in arrays) - 1
    dx, draw, *dflow = _call(_input_kernel, plan, plan.tiles, shapes, arrays, aliases={position: 0})
    n, h, w = plan.size
    dx = dx.reshape(n, plan.groups, h, w, plan.width)[..., : plan.channels]
    dx = dx.transpose(0, 2, 3, 1, 4).reshape(x.shape).astype(x.dtype)
    dflow = dflow[0].reshape(flow.shape).astype(flow.dtype) if dflow else None
    return dx, draw.reshape(raw.shape), dflow, _weight_gradient(plan, inputs, weight, dout)


def _weight_gradient(plan: Plan, inputs: list, weight: Array, dout: Array) -> Array:
    parts = next(d for d in range(min(WEIGHT_PARTS, plan.tiles), 0, -1) if plan.tiles % d == 0)
    features = _features(plan, WEIGHT_ROWS)
    shape = (parts, TAPS, plan.quads, plan.quad * plan.width, features)
    dweight = _call(
        _weight_kernel,
        plan,
        parts * TAPS * plan.quads,
        jax.ShapeDtypeStruct(shape, jnp.float32),
        [*inputs, dout],
        chunk=plan.tiles // parts,
    )
    dweight = jnp.sum(dweight, axis=0).reshape(TAPS, plan.groups, plan.width, features)
    dweight = dweight[:, :, : plan.channels, : plan.features].reshape(weight.shape)
    return dweight.astype(weight.dtype)
