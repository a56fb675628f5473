"""Gradient of bilinear warping as a Triton kernel: one pass for the features and the flow.

A program owns a tile of output pixels and walks over channels. It adds each pixel's gradient to
its four source pixels, in float32, and sums up the products with them for the flow.
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

from vrtspike_jax.ops.pallas_atomics import relaxed_add


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the kernel is specialised for.

    Attributes:
        size: N, H, W.
        channels: Channels of the features.
        pixels: Output pixels of a program.
        width: Channels handled at once; a power of two that divides `channels`.
        interpret: Run on the CPU, for tests.
    """

    size: tuple[int, int, int]
    channels: int
    pixels: int = 32
    width: int = 32
    interpret: bool = False


def make_plan(size: tuple[int, int, int], channels: int, interpret: bool = False) -> Plan | None:
    """Chooses tile sizes; None where the kernel does not fit."""
    width = next((w for w in (32, 16, 8) if channels % w == 0), None)
    n, h, w = size
    if width is None or n * h * w % 32:
        return None
    return Plan(size, channels, width=width, interpret=interpret)


def _kernel(x_ref: Any, flow_ref: Any, dout_ref: Any, _: Any, dx_ref: Any, dflow_ref: Any, plan):
    _, h, w = plan.size
    flat = pl.program_id(0) * plan.pixels + jnp.arange(plan.pixels, dtype=jnp.int32)
    image = lax.div(flat, h * w)
    x = plgpu.load(flow_ref.at[flat, 0]) + lax.rem(flat, w).astype(jnp.float32)
    y = plgpu.load(flow_ref.at[flat, 1]) + lax.rem(lax.div(flat, w), h).astype(jnp.float32)
    top, left = jnp.floor(y), jnp.floor(x)
    down, across = y - top, x - left
    corners = []
    for r, weight_r in ((top, 1 - down), (top + 1, down)):
        for c, weight_c in ((left, 1 - across), (left + 1, across)):
            inside = (r >= 0) & (r <= h - 1) & (c >= 0) & (c <= w - 1)
            # First in float32: a coordinate may be too large for an integer.
            row, column = (
                jnp.clip(jnp.clip(p, 0.0, size - 1.0).astype(jnp.int32), 0, size - 1)
                for p, size in ((r, h), (c, w))
            )
            weight = jnp.where(inside, weight_r * weight_c, 0.0)
            corners.append(((image * h + row) * w + column, weight, inside))

    def body(step: Array, products: list) -> list:
        channel = (step * plan.width + jnp.arange(plan.width, dtype=jnp.int32))[None, :]
        dout = plgpu.load(dout_ref.at[flat[:, None], channel]).astype(jnp.float32)
        result = []
        for (row, weight, _), product in zip(corners, products, strict=True):
            relaxed_add(dx_ref, (row[:, None], channel), weight[:, None] * dout)
            source = plgpu.load(x_ref.at[row[:, None], channel]).astype(jnp.float32)
            result.append(product + jnp.sum(dout * source, axis=1))
        return result

    zeros = jnp.zeros((plan.pixels,), jnp.float32)
    products = lax.fori_loop(0, plan.channels // plan.width, body, [zeros] * 4)
    top_left, top_right, bottom_left, bottom_right = (
        jnp.where(inside, product, 0.0)
        for product, (*_, inside) in zip(products, corners, strict=True)
    )
    dx = (1 - down) * (top_right - top_left) + down * (bottom_right - bottom_left)
    dy = (1 - across) * (bottom_left - top_left) + across * (bottom_right - top_right)
    plgpu.store(dflow_ref.at[flat, 0], dx)
    plgpu.store(dflow_ref.at[flat, 1], dy)


def backward(
    plan: Plan,
    x: Float[Array, "n h w c"],
    flow: Float[Array, "n h w 2"],
    dout: Float[Array, "n h w c"],
) -> tuple[Array, Array]:
    """Gradients with respect to features and flow (float32), zero outside the image."""
    rows = (-1, plan.channels)
    zeros = jnp.zeros((x.size // plan.channels, plan.channels), jnp.float32)
    flow = flow.reshape(-1, 2)
    dx, dflow = pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        grid=(zeros.shape[0] // plan.pixels,),
        out_shape=[jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (zeros, flow)],
        input_output_aliases={3: 0},
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=plan.interpret,
        name="warp_backward_kernel",
    )(x.reshape(rows), flow, dout.reshape(rows), zeros)
    return dx.reshape(x.shape).astype(x.dtype), dflow.reshape(x.shape[:3] + (2,))
