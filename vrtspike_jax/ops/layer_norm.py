"""LayerNorm of one kernel each way, which keeps nothing but the input."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrtspike_jax.ops import carried_bias, dispatch
from vrtspike_jax.ops.partition import SUM, Split, find_kernels, split_batch

IMPLEMENTATIONS = ("auto", "xla", "pallas", "interpret")
EPSILON = 1e-5  # torch.nn.LayerNorm's


def layer_norm(
    x: Float[Array, "b ... c"],
    gamma: Float[Array, " c"],
    beta: Float[Array, " c"],
    dtype: jnp.dtype | None = None,
    with_input: bool = False,
    implementation: str = "auto",
    carried: tuple[Float[Array, " c"], Float[Array, " b"] | None] | None = None,
) -> Float[Array, "b ... c"] | tuple[Float[Array, "b ... c"], Float[Array, "b ... c"]]:
    """LayerNorm over the last axis, with statistics in float32.

    Args:
        x: Features.
        gamma: Scale.
        beta: Bias.
        dtype: The result's; None means x's.
        with_input: Returns x too, for x + f(layer_norm(x)): if the sum takes this x, the backward
            pass adds the gradients of both uses where it makes them.
        implementation: "xla" is the reference. "pallas" has CUDA kernels. "auto" is "pallas"
            on CUDA GPUs and "xla" elsewhere; "interpret" runs the kernels on the CPU, for tests.
        carried: With the input: the bias that ends f, where it is a constant (see `carried_bias`),
            and f's factor for each sample, which gets no gradient, or None.

    Returns:
        The normalised features, or these and x.

    Raises:
        ValueError: for an unknown implementation.
    """
    dispatch.check("layer_norm", implementation, IMPLEMENTATIONS)
    dtype = jnp.dtype(dtype or x.dtype)
    kernels = find_kernels("pallas_norm", implementation, x, gamma)
    if kernels is not None:
        split = split_batch("layer_norm", x.shape[0], x, gamma)
        if x.size // split.parts >= 2**31:  # what the kernel counts in
            kernels = None
    if kernels is None:
        y = jax.checkpoint(_normalise)(x, gamma, beta).astype(dtype)
        if carried is not None:
            x = carried_bias.carry(x, *carried)
        return (y, x) if with_input else y
    rows = math.prod(x.shape[:-1])
    plan = kernels.make_plan(
        rows // split.parts,
        rows // x.shape[0],
        x.shape[-1],
        interpret=implementation == "interpret",
    )
    if carried is not None and carried[1] is None:
        carried = carried[0], jnp.ones(x.shape[0], jnp.float32)
    out = _fused(plan, split, dtype, with_input, x, (gamma, beta), carried)
    return out if with_input else out[0]


def _normalise(x: Array, gamma: Float[Array, " c"], beta: Float[Array, " c"]) -> Array:
    y = x.astype(jnp.float32)
    mean = y.mean(axis=-1, keepdims=True)
    variance = jnp.square(y).mean(axis=-1, keepdims=True) - jnp.square(mean)
    factor = jax.lax.rsqrt(jnp.maximum(variance, 0) + EPSILON) * gamma
    return (y - mean) * factor + beta


def _reference(dtype: jnp.dtype, with_input: bool, x: Array, *parameters: Array) -> tuple:
    y = _normalise(x, *parameters).astype(dtype)
    return (y, x) if with_input else (y,)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _fused(
    plan: Any,
    split: Split,
    dtype: jnp.dtype,
    with_input: bool,
    x: Array,
    parameters: tuple[Array, Array],
    carried: tuple[Array, Array] | None,
) -> tuple[Array, ...]:
    """The result and, if asked for, x."""
    del carried
    y = _run_forward(plan, split, dtype, x, parameters)
    return (y, x) if with_input else (y,)


def _fused_forward(
    plan: Any, split: Split, dtype: jnp.dtype, with_input: bool, *arguments: Any
) -> tuple[tuple[Array, ...], tuple]:
    return _fused(plan, split, dtype, with_input, *arguments), arguments


def _fused_backward(
    plan: Any,
    split: Split,
    dtype: jnp.dtype,
    with_input: bool,
    saved: tuple,
    gradients: tuple[Array, ...],
) -> tuple:
    x, parameters, carried = saved
    scale = None if carried is None else carried[1]
    dx, dparameters, *total = _run_backward(plan, split, dtype, x, gradients, scale, parameters)
    if carried is None:
        return dx, dparameters, None
    return dx, dparameters, (total[0].astype(carried[0].dtype), jnp.zeros_like(scale))


_fused.defvjp(_fused_forward, _fused_backward)


# Jitted, so that layers of the same shapes are traced and lowered once.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run_forward(
    plan: Any, split: Split, dtype: jnp.dtype, x: Array, parameters: tuple[Array, Array]
) -> Array:
    """The normalised features."""
    kernels = dispatch.kernels("pallas_norm")

    def cuda(x: Array, gamma: Array, beta: Array) -> Array:
        flat = x.reshape(-1, x.shape[-1])
        return kernels.forward(plan, flat, gamma, beta, dtype).reshape(x.shape)

    def otherwise(x: Array, gamma: Array, beta: Array) -> Array:
        return _normalise(x, gamma, beta).astype(dtype)

    def run(x: Array, parameters: tuple[Array, Array]) -> Array:
        return dispatch.on_cuda(cuda, otherwise, x, *parameters, interpret=plan.interpret)

    return split.over(run, (0, None), 0)(x, parameters)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run_backward(
    plan: Any,
    split: Split,
    dtype: jnp.dtype,
    x: Array,
    gradients: tuple[Array, ...],
    scale: Array | None,
    parameters: tuple[Array, Array],
) -> tuple:
    """Gradients, from those of the result and of x where it came along.

    Returns:
        Gradients of x and of the parameters and, given a scale for each sample, the sum over rows
        of it times the gradient of the x that came along.
    """
    kernels = dispatch.kernels("pallas_norm")

    def cuda(x: Array, parameters: tuple, gradients: tuple, scale: Array | None) -> tuple:
        flat, dy, *around = (a.reshape(-1, a.shape[-1]) for a in (x, *gradients))
        around += [] if scale is None else [scale]
        dx, sums = kernels.backward(plan, flat, dy, parameters[0], *around)
        dparameters = tuple(s.astype(p.dtype) for s, p in zip(sums, parameters, strict=False))
        return dx.reshape(x.shape), dparameters, *sums[2:]

    def otherwise(x: Array, parameters: tuple, gradients: tuple, scale: Array | None) -> tuple:
        run = functools.partial(_reference, dtype, len(gradients) == 2)
        dx, *dparameters = jax.vjp(run, x, *parameters)[1](gradients)
        total = [] if scale is None else [carried_bias.row_sum(gradients[1], scale)]
        return dx, tuple(dparameters), *total

    run = functools.partial(dispatch.on_cuda, cuda, otherwise, interpret=plan.interpret)
    outputs = (0, SUM) if scale is None else (0, SUM, SUM)
    return split.over(run, (0, None, 0, 0), outputs)(x, parameters, gradients, scale)
