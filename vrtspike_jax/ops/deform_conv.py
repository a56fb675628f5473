"""Modulated deformable 3x3 convolution (DCNv2), as `torchvision.ops.deform_conv2d` defines it.

The reference is a sampler that fills the columns of an im2col matrix, followed by one matrix
product; the kernels for GPUs sample and multiply tile by tile.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from vrtspike_jax.ops import dispatch
from vrtspike_jax.ops.partition import SUM, Split, find_kernels, split_batch

TAPS = 9
# Name of the result, for rematerialisation policies.
SAVED_NAME = "deform_conv"
IMPLEMENTATIONS = ("auto", "xla", "pallas", "interpret")


def sample_columns(
    x: Float[Array, "n h w c"],
    offset: Float[Array, "n h w g 9 2"],
    mask: Float[Array, "n h w g 9"],
) -> Float[Array, "n h w 9 c"]:
    """Bilinear samples of `x` under each tap, times the mask: the reference implementation.

    Channels are split into G consecutive groups that share an offset. Outside the image is zero.
    """
    n, h, w, c = x.shape
    groups = offset.shape[3]
    # Groups go last so that samples land in channel order without a transpose.
    offset = jnp.swapaxes(offset.astype(jnp.float32), 3, 4)
    mask = jnp.swapaxes(mask.astype(jnp.float32), 3, 4)[..., None]
    tap = jnp.arange(TAPS, dtype=jnp.float32)[:, None]
    row = offset[..., 0] + (tap // 3 - 1) + jnp.arange(h, dtype=jnp.float32)[:, None, None, None]
    column = offset[..., 1] + (tap % 3 - 1) + jnp.arange(w, dtype=jnp.float32)[:, None, None]
    top, left = jnp.floor(row), jnp.floor(column)
    down, across = row - top, column - left

    pixels = x.reshape(n * h * w * groups, c // groups)
    image = jnp.arange(n).reshape(n, 1, 1, 1, 1)
    group = jnp.arange(groups)

    def corner(r, c, weight):
        inside = (r >= 0) & (r <= h - 1) & (c >= 0) & (c <= w - 1)
        r = jnp.clip(r, 0, h - 1).astype(jnp.int32)
        c = jnp.clip(c, 0, w - 1).astype(jnp.int32)
        index = ((image * h + r) * w + c) * groups + group
        values = pixels.at[index].get(mode="promise_in_bounds")
        return jnp.where(inside, weight, 0)[..., None] * values

    samples = (
        corner(top, left, (1 - down) * (1 - across))
        + corner(top, left + 1, (1 - down) * across)
        + corner(top + 1, left, down * (1 - across))
        + corner(top + 1, left + 1, down * across)
    )
    return (mask * samples).astype(x.dtype).reshape(n, h, w, TAPS, c)


def deform_conv2d(
    x: Float[Array, "n h w c_in"],
    offset: Float[Array, "n h w g 9 2"],
    mask: Float[Array, "n h w g 9"],
    weight: Float[Array, "3 3 c_in_per_group c_out"],
    bias: Float[Array, " c_out"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "n h w c_out"]:
    """Modulated deformable convolution: kernel 3, stride 1, padding 1.

    Args:
        x: Input features. Channels form G deformable groups and, independently of them,
            c_in / c_in_per_group convolution groups.
        offset: Displacement (dy, dx) in pixels of each tap, in float32.
        mask: Modulation of each tap.
        weight: Filter; taps in row-major order.
        bias: Optional, added to the output.
        implementation: "auto" is "pallas" on CUDA GPUs and "xla" elsewhere; "interpret" runs the
            kernels on the CPU, for tests.

    Returns:
        Features in x's dtype.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    n, h, w, c_in = x.shape
    c_in_per_group, c_out = weight.shape[2:]
    groups, remainder = divmod(c_in, c_in_per_group)
    deformable = offset.shape[3]
    if weight.shape[:2] != (3, 3) or remainder or c_out % groups or c_in % deformable:
        raise ValueError(
            f"deform_conv2d: input has {c_in} channels, offsets {deformable} groups; "
            f"weight {weight.shape} does not fit"
        )
    if offset.shape != (n, h, w, deformable, TAPS, 2) or mask.shape != offset.shape[:-1]:
        raise ValueError(
            f"deform_conv2d: offset {offset.shape} and mask {mask.shape}, want "
            f"{(n, h, w, deformable, TAPS, 2)} and {(n, h, w, deformable, TAPS)}"
        )
    raw = jnp.concatenate([offset, mask[..., None].astype(offset.dtype)], axis=-1)
    quad = quad_size(deformable, 1, c_in)
    raw = raw.reshape(n, h, w, deformable // quad, quad, TAPS, 3)
    raw = raw.transpose(0, 1, 2, 3, 5, 6, 4)
    return _convolve(x, raw, None, weight, bias, None, implementation)


def flow_guided_deform_conv(
    x: Float[Array, "n h w c_in"],
    raw: Float[Array, "n h w quads 9 3 quad"],
    flow: Float[Array, "n h w s 2"],
    weight: Float[Array, "3 3 c_in_per_group c_out"],
    bias: Float[Array, " c_out"] | None,
    magnitude: float,
    implementation: str = "auto",
) -> Float[Array, "n h w c_out"]:
    """Deformable convolution with offsets magnitude * tanh(raw) + flow, modulated by sigmoid(raw).

    Args:
        x: Input features; their channels form G = quads * quad deformable groups.
        raw: For each tap, the rows, the columns and the modulations of a few neighbouring groups,
            before their activations; any float dtype. `raw_channels` tells how this order follows
            from the published one. The kernels need the number of groups that `quad_size` gives.
        flow: Displacements (x, y) in pixels of S sources, each for G / S consecutive groups.
        weight: As in `deform_conv2d`.
        bias: As in `deform_conv2d`.
        magnitude: Bound of the learned part of the offset, in pixels.
        implementation: As in `deform_conv2d`.

    Returns:
        Features in x's dtype.

    Raises:
        ValueError: if the shapes do not fit together, or for an unknown implementation.
    """
    groups, sources = raw.shape[3] * raw.shape[-1], flow.shape[-2]
    if (
        raw.shape[:3] != x.shape[:3]
        or raw.shape[4:6] != (TAPS, 3)
        or groups % sources
        or x.shape[-1] % groups
    ):
        raise ValueError(
            f"flow_guided_deform_conv: input {x.shape}, raw {raw.shape}, flow {flow.shape} do not "
            "fit together"
        )
    flow = flow.astype(jnp.float32)
    return _convolve(x, raw, flow, weight, bias, float(magnitude), implementation)


def quad_size(groups: int, sources: int, channels: int) -> int:
    """How many of a source's neighbouring deformable groups to handle together.

    Their channels, each group's padded to a power of two, should be about 32: as much as a
    kernel's tile holds.
    """
    padded = 1 << (channels // groups - 1).bit_length()
    quad = max(1, 32 // padded)
    while groups // sources % quad:
        quad //= 2
    return quad


def raw_channels(groups: int, quad: int) -> Int[np.ndarray, " channels"]:
    """Published channel (all groups' offsets, then modulation) for each of groups * 27 here.

    Published: (group, tap, (y, x)), then (group, tap). Here: (group // quad, tap, (y, x,
    modulation), group % quad).
    """
    offsets = np.arange(groups * TAPS * 2).reshape(groups, TAPS, 2)
    modulation = offsets.size + np.arange(groups * TAPS).reshape(groups, TAPS, 1)
    channels = np.concatenate([offsets, modulation], axis=-1)
    channels = channels.reshape(groups // quad, quad, TAPS, 3).transpose(0, 2, 3, 1)
    return channels.reshape(-1)


def _convolve(
    x: Array,
    raw: Array,
    flow: Array | None,
    weight: Array,
    bias: Array | None,
    magnitude: float | None,
    implementation: str,
) -> Array:
    dispatch.check("deform_conv2d", implementation, IMPLEMENTATIONS)
    kernels = find_kernels("pallas_deform", implementation, x, raw)
    split = split_batch("deform_conv2d", x.shape[0], x, raw)
    groups = raw.shape[3] * raw.shape[-1]
    plan = None
    if kernels is not None:
        plan = kernels.make_plan(
            size=split.shape(x).shape[:3],
            groups=groups,
            quad=raw.shape[-1],
            sources=1 if flow is None else flow.shape[-2],
            channels=x.shape[-1] // groups,
            features=weight.shape[-1],
            magnitude=magnitude,
            interpret=implementation == "interpret",
        )
    if plan is None:
        reference = functools.partial(_reference, magnitude=magnitude)
        out = split.over(reference, (0, 0, 0, None), 0)(x, raw, flow, weight)
    else:
        out = _fused(plan, split, x, raw, flow, weight)
    out = checkpoint_name(out, SAVED_NAME)
    return out if bias is None else out + bias.astype(x.dtype)


def _reference(
    x: Array, raw: Array, flow: Array | None, weight: Array, magnitude: float | None
) -> Array:
    """Samples columns, then multiplies them with the filter."""
    n, h, w, c_in = x.shape
    c_in_per_group, c_out = weight.shape[2:]
    quads, quad = raw.shape[3], raw.shape[-1]
    raw = raw.astype(jnp.float32).transpose(0, 1, 2, 3, 6, 4, 5)
    raw = raw.reshape(n, h, w, quads * quad, TAPS, 3)
    offset, modulation = raw[..., :2], raw[..., 2]
    if magnitude is not None:
        flow = jnp.repeat(flow[..., ::-1], raw.shape[3] // flow.shape[-2], axis=3)
        offset = magnitude * jnp.tanh(offset) + flow[..., None, :]
        modulation = jax.nn.sigmoid(modulation)
    columns = sample_columns(x, offset, modulation)
    weight = weight.astype(x.dtype)
    groups = c_in // c_in_per_group
    if groups == 1:
        return jnp.einsum("nhwkc,kcd->nhwd", columns, weight.reshape(TAPS, c_in, c_out))
    columns = columns.reshape(n, h, w, TAPS, groups, c_in_per_group)
    weight = weight.reshape(TAPS, c_in_per_group, groups, c_out // groups)
    return jnp.einsum("nhwkgc,kcgd->nhwgd", columns, weight).reshape(n, h, w, c_out)


def _dense(weight: Float[Array, "3 3 c f"], c_in: int) -> Float[Array, "9 c_in f"]:
    """A filter of several groups as one of a single group, with zeros between them."""
    c, f = weight.shape[2:]
    groups = c_in // c
    weight = weight.reshape(TAPS, c, groups, f // groups)
    mixed = jnp.einsum("kcgf,gh->kgchf", weight, jnp.eye(groups, dtype=weight.dtype))
    return mixed.reshape(TAPS, c_in, f)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(
    plan: Any, split: Split, x: Array, raw: Array, flow: Array | None, weight: Array
) -> Array:
    """Convolution by kernels on CUDA and by the reference elsewhere; the choice falls at lowering.

    The derivative is defined here, around the choice, so that all platforms keep the same arrays:
    the inputs, and no columns.
    """
    return _fused_forward(plan, split, x, raw, flow, weight)[0]


def _fused_forward(
    plan: Any, split: Split, x: Array, raw: Array, flow: Array | None, weight: Array
) -> tuple[Array, tuple]:
    saved = (x, raw, flow, weight)
    return _run_forward(plan, split, *saved), saved


def _fused_backward(plan: Any, split: Split, saved: tuple, dout: Array) -> tuple:
    return _run_backward(plan, split, *saved, dout)


_fused.defvjp(_fused_forward, _fused_backward)


# Jitted, so that layers of the same shapes are traced and lowered once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_forward(plan: Any, split: Split, *args: Any) -> Array:
    kernels = dispatch.kernels("pallas_deform")

    def cuda(x: Array, raw: Array, flow: Array | None, weight: Array) -> Array:
        return kernels.forward(plan, x, raw, flow, _dense(weight, x.shape[-1]))

    otherwise = functools.partial(_reference, magnitude=plan.magnitude)
    run = functools.partial(dispatch.on_cuda, cuda, otherwise, interpret=plan.interpret)
    return split.over(run, (0, 0, 0, None), 0)(*args)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_backward(plan: Any, split: Split, *args: Any) -> tuple:
    kernels = dispatch.kernels("pallas_deform")

    def cuda(x: Array, raw: Array, flow: Array | None, weight: Array, dout: Array) -> tuple:
        dense, pull = jax.vjp(lambda weight: _dense(weight, x.shape[-1]), weight)
        dx, draw, dflow, dweight = kernels.backward(plan, x, raw, flow, dense, dout)
        return dx, draw, dflow, *pull(dweight)

    def otherwise(x: Array, raw: Array, flow: Array | None, weight: Array, dout: Array) -> tuple:
        reference = functools.partial(_reference, magnitude=plan.magnitude)
        return jax.vjp(reference, x, raw, flow, weight)[1](dout)

    run = functools.partial(dispatch.on_cuda, cuda, otherwise, interpret=plan.interpret)
    return split.over(run, (0, 0, 0, None, 0), (0, 0, 0, SUM))(*args)
