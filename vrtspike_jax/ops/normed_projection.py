"""LayerNorm and a projection of its result, which begin a residual branch, in one operation."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrtspike_jax.ops import carried_bias, dispatch
from vrtspike_jax.ops.layer_norm import layer_norm
from vrtspike_jax.ops.partition import SUM, Split, as_rows, find_kernels, split_batch

IMPLEMENTATIONS = ("auto", "xla", "pallas", "interpret")


def normed_projection(
    x: Float[Array, "b ... c"],
    gamma: Float[Array, " c"],
    beta: Float[Array, " c"],
    weight: Float[Array, "c features"],
    bias: Float[Array, " features"] | None,
    carried: tuple[Float[Array, " c"], Float[Array, " b"] | None],
    dtype: jnp.dtype | None = None,
    implementation: str = "auto",
) -> tuple[Float[Array, "b ... features"], Float[Array, "b ... c"]]:
    """LayerNorm(x) weight + bias, and x, for a residual sum: see `layer_norm`'s `with_input`.

    Args:
        x: Features.
        gamma: LayerNorm's scale.
        beta: LayerNorm's bias.
        weight: Of the projection.
        bias: Of the projection, or None. A constant: its gradient comes from what carries it (see
            `carried_bias`).
        carried: The bias that ends the branch, where it is a constant, and the branch's factor for
            each sample, which gets no gradient, or None.
        dtype: The result's, and that of the product's operands; None means x's.
        implementation: "xla" is the reference. "pallas" has CUDA kernels for GPUs with a lot of
            shared memory, 16-bit features and few channels, each way one, which keep nothing but
            x; elsewhere it is `layer_norm`'s "pallas" and a product. "auto" is "pallas" on CUDA
            GPUs and "xla" elsewhere; "interpret" runs the kernels on the CPU, for tests.

    Returns:
        The projection, and x.

    Raises:
        ValueError: for an unknown implementation.
    """
    dispatch.check("normed_projection", implementation, IMPLEMENTATIONS)
    dtype = jnp.dtype(dtype or x.dtype)
    split, plans = Split(), None
    kernels = find_kernels("pallas_normed_projection", implementation, x, weight)
    if kernels is not None and x.dtype == dtype:
        split = split_batch("normed_projection", x.shape[0], x, weight)
        rows = math.prod(x.shape[:-1])
        interpret = implementation == "interpret"
        sizes = rows // split.parts, rows // x.shape[0], *weight.shape
        plans = kernels.make_plans(*sizes, dtype, interpret)
    if plans is None:
        n, x = layer_norm(x, gamma, beta, dtype, True, implementation, carried)
        return project(n, weight, bias, dtype), x
    last, scale = carried
    bias = jnp.zeros(weight.shape[1]) if bias is None else bias
    scale = jnp.ones(x.shape[0]) if scale is None else scale
    return _fused(plans, split, x, (gamma, beta, weight), bias, (last, scale))


def project(
    x: Float[Array, "b ... c"],
    weight: Float[Array, "c features"],
    bias: Float[Array, " features"] | None,
    dtype: jnp.dtype,
) -> Float[Array, "b ... features"]:
    """x weight + bias, which is a constant."""
    y = as_rows(x).astype(dtype) @ weight.astype(dtype)  # Of rows, cuBLAS adds the bias.
    if bias is not None:
        y += jax.lax.stop_gradient(bias.astype(dtype))
    return y.reshape(*x.shape[:-1], -1)


def _reference(x: Array, parameters: tuple[Array, ...], bias: Array) -> tuple[Array, Array]:
    gamma, beta, weight = parameters
    n, x = layer_norm(x, gamma, beta, with_input=True, implementation="xla")
    return project(n, weight, bias, x.dtype), x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(
    plans: Any,
    split: Split,
    x: Array,
    parameters: tuple[Array, Array, Array],
    bias: Array,
    carried: tuple[Array, Array],
) -> tuple[Array, Array]:
    """The projection by its kernel on CUDA, else by the reference; and x."""
    del carried
    return _run_forward(plans, split, x, parameters, bias), x


def _fused_forward(plans: Any, split: Split, *arguments: Any) -> tuple[tuple[Array, Array], tuple]:
    return _fused(plans, split, *arguments), arguments


def _fused_backward(plans: Any, split: Split, saved: tuple, gradients: tuple) -> tuple:
    x, parameters, bias, (last, scale) = saved
    dx, dparameters, total = _run_backward(plans, split, x, gradients, scale, parameters)
    dcarried = total.astype(last.dtype), jnp.zeros_like(scale)
    return dx, dparameters, jnp.zeros_like(bias), dcarried


_fused.defvjp(_fused_forward, _fused_backward)


# Jitted, so that blocks of the same shapes are traced and lowered once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_forward(
    plans: Any, split: Split, x: Array, parameters: tuple[Array, ...], bias: Array
) -> Array:
    kernels, plan = dispatch.kernels("pallas_normed_projection"), plans.forward

    def cuda(x: Array, parameters: tuple[Array, ...], bias: Array) -> Array:
        y = kernels.forward(plan, x.reshape(-1, x.shape[-1]), *parameters, bias)
        return y.reshape(*x.shape[:-1], -1)

    def otherwise(*args: Any) -> Array:
        return _reference(*args)[0]

    run = functools.partial(dispatch.on_cuda, cuda, otherwise, interpret=plan.interpret)
    return split.over(run, (0, None, None), 0)(x, parameters, bias)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_backward(
    plans: Any,
    split: Split,
    x: Array,
    gradients: tuple[Array, Array],
    scale: Array,
    parameters: tuple[Array, ...],
) -> tuple[Array, tuple[Array, ...], Array]:
    """Gradients of x and the parameters, and the sum over rows of `scale` times that around."""
    kernels, plan = dispatch.kernels("pallas_normed_projection"), plans.backward

    def cuda(x: Array, gradients: tuple, scale: Array, parameters: tuple) -> tuple:
        flat, dy, around = (a.reshape(-1, a.shape[-1]) for a in (x, *gradients))
        dx, *dparameters, total = kernels.backward(plan, flat, dy, around, scale, *parameters)
        dparameters = (d.astype(p.dtype) for d, p in zip(dparameters, parameters, strict=True))
        return dx.reshape(x.shape), tuple(dparameters), total

    def otherwise(x: Array, gradients: tuple, scale: Array, parameters: tuple) -> tuple:
        bias = jnp.zeros(parameters[-1].shape[1])
        _, pull = jax.vjp(lambda x, p: _reference(x, p, bias), x, parameters)
        return *pull(gradients), carried_bias.row_sum(gradients[1], scale)

    run = functools.partial(dispatch.on_cuda, cuda, otherwise, interpret=plan.interpret)
    return split.over(run, (0, 0, 0, None), (0, SUM, SUM))(x, gradients, scale, parameters)
