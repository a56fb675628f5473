"""Backward warping of images and feature maps by optical flow."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vrtspike_jax.ops import dispatch
from vrtspike_jax.ops.partition import Split, find_kernels, split_batch

MODES = ("bilinear", "nearest4")
PADDINGS = ("zeros", "border")
IMPLEMENTATIONS = ("auto", "xla", "pallas", "interpret")


def gather_pixels(
    x: Float[Array, "n h w c"], row: Int[Array, "n ..."], column: Int[Array, "n ..."]
) -> Float[Array, "n ... c"]:
    """Reads whole pixels at integer coordinates that must lie inside the image.

    One flat row index into (N*H*W, C) is the form that GPUs and TPUs gather fastest.
    """
    n, h, w, c = x.shape
    image = jnp.arange(n).reshape((n,) + (1,) * (row.ndim - 1))
    return x.reshape(n * h * w, c).at[(image * h + row) * w + column].get(mode="promise_in_bounds")


def _sample(x: Array, row: Array, column: Array, padding: str) -> Array:
    """Reads pixels at integral coordinates (stored as float32); outside is zero or the border."""
    h, w = x.shape[1:3]
    row_in, column_in = jnp.clip(row, 0, h - 1), jnp.clip(column, 0, w - 1)
    pixels = gather_pixels(x, row_in.astype(jnp.int32), column_in.astype(jnp.int32))
    if padding == "border":
        return pixels
    inside = (row_in == row) & (column_in == column)
    return jnp.where(inside[..., None], pixels, jnp.zeros((), x.dtype))


def flow_warp(
    x: Float[Array, "n h w c"],
    flow: Float[Array, "n h w 2"],
    mode: str = "bilinear",
    padding: str = "zeros",
    implementation: str = "auto",
) -> Float[Array, "n h w c_out"]:
    """Samples `x` at each pixel's position plus `flow` (VRT's `flow_warp`).

    Args:
        x: Images or features.
        flow: Displacement (x, y) in pixels.
        mode: "bilinear" interpolates. "nearest4" returns the four surrounding pixels
            concatenated along channels, in the order (floor x, floor y), (floor x, ceil y),
            (ceil x, floor y), (ceil x, ceil y); it has no gradient with respect to `flow`.
        padding: What lies outside the image: "zeros", or the nearest "border" pixel.
        implementation: Of the gradient of bilinear warping with zeros outside: "pallas" is one
            kernel on CUDA GPUs, for at least 8 channels; "auto" takes it where it can, "xla"
            never; "interpret" runs it on the CPU, for tests.

    Returns:
        The warped array in x's dtype; 4 * C channels for "nearest4".

    Raises:
        ValueError: for an unknown mode, padding or implementation, or a flow whose shape does not
            fit.
    """
    dispatch.check("flow_warp", implementation, IMPLEMENTATIONS)
    if mode not in MODES or padding not in PADDINGS:
        raise ValueError(f"flow_warp: mode {mode!r}, padding {padding!r}; want {MODES}, {PADDINGS}")
    n, h, w, _ = x.shape
    if flow.shape != (n, h, w, 2):
        raise ValueError(f"flow_warp: flow has shape {flow.shape}, want {(n, h, w, 2)}")
    flow = flow.astype(jnp.float32)
    split = split_batch("flow_warp", n, x, flow)
    kernels = find_kernels("pallas_warp", implementation, x, flow)
    if (mode, padding) == ("bilinear", "zeros") and kernels:
        plan = kernels.make_plan(
            split.shape(x).shape[:3], x.shape[3], interpret=implementation == "interpret"
        )
        if plan is not None:
            return _warp_features(plan, split, x, flow)
    return _warp_parts(split, x, flow, mode, padding)


def _warp_parts(split: Split, x: Array, flow: Array, mode: str, padding: str) -> Array:
    return split.over(functools.partial(_warp, mode=mode, padding=padding), 0, 0)(x, flow)


def _warp(x: Array, flow: Array, mode: str, padding: str) -> Array:
    """`flow_warp` by whole-array operations, whose gradients are scatters."""
    _, h, w, _ = x.shape
    column = jnp.arange(w, dtype=jnp.float32) + flow[..., 0]
    row = jnp.arange(h, dtype=jnp.float32)[:, None] + flow[..., 1]
    if mode == "nearest4":
        columns, rows = (jnp.floor(column), jnp.ceil(column)), (jnp.floor(row), jnp.ceil(row))
        return jnp.concatenate([_sample(x, r, c, padding) for c in columns for r in rows], axis=-1)
    if padding == "border":
        column, row = jnp.clip(column, 0, w - 1), jnp.clip(row, 0, h - 1)
    left, top = jnp.floor(column), jnp.floor(row)
    across, down = (column - left)[..., None], (row - top)[..., None]
    corners = [
        ((1 - down) * (1 - across), top, left),
        ((1 - down) * across, top, left + 1),
        (down * (1 - across), top + 1, left),
        (down * across, top + 1, left + 1),
    ]
    return sum(weight * _sample(x, r, c, padding) for weight, r, c in corners).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _warp_features(plan: Any, split: Split, x: Array, flow: Array) -> Array:
    """Bilinear warping, zero outside, with a kernel for the gradient on CUDA."""
    return _warp_parts(split, x, flow, "bilinear", "zeros")


def _warp_features_forward(
    plan: Any, split: Split, x: Array, flow: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _warp_parts(split, x, flow, "bilinear", "zeros"), (x, flow)


def _warp_features_backward(
    plan: Any, split: Split, saved: tuple[Array, Array], dout: Array
) -> tuple[Array, Array]:
    return _run_backward(plan, split, *saved, dout)


_warp_features.defvjp(_warp_features_forward, _warp_features_backward)


# Jitted, so that layers of the same shapes are traced and lowered once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_backward(
    plan: Any, split: Split, x: Array, flow: Array, dout: Array
) -> tuple[Array, Array]:
    def otherwise(x: Array, flow: Array, dout: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda *args: _warp(*args, "bilinear", "zeros"), x, flow)[1](dout)

    cuda = functools.partial(dispatch.kernels("pallas_warp").backward, plan)
    run = functools.partial(dispatch.on_cuda, cuda, otherwise, interpret=plan.interpret)
    return split.over(run, 0, 0)(x, flow, dout)
