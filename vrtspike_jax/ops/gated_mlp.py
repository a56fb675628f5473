"""Pre-norm gated feed-forward block: LayerNorm, GEGLU and the residual sum in one operation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrtspike_jax.ops import dispatch
from vrtspike_jax.ops.layer_norm import EPSILON
from vrtspike_jax.ops.partition import SUM, Split, find_kernels, split_batch

IMPLEMENTATIONS = ("auto", "xla", "pallas", "interpret")


def gated_mlp(
    x: Float[Array, "b ... c"],
    gamma: Float[Array, " c"],
    beta: Float[Array, " c"],
    w11: Float[Array, "c hidden"],
    b11: Float[Array, " hidden"],
    w12: Float[Array, "c hidden"],
    b12: Float[Array, " hidden"],
    w2: Float[Array, "hidden c"],
    b2: Float[Array, " c"],
    branch_scale: Float[Array, " b"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "b ... c"]:
    """x + branch_scale * fc2(gelu(fc11(n)) * fc12(n)) with n = LayerNorm(x), VRT's `Mlp_GEGLU`.

    Args:
        x: Features; their dtype is the compute dtype.
        gamma: LayerNorm's scale.
        beta: LayerNorm's bias.
        w11: Weight of the gate.
        b11: Bias of the gate.
        w12: Weight of the value.
        b12: Bias of the value.
        w2: Weight of the output.
        b2: Bias of the output.
        branch_scale: Factor of the branch for each sample, for stochastic depth; drawn, not
            learned, so that it gets no gradient. None means 1.
        implementation: "xla" is the reference. "pallas" has CUDA kernels each way, which keep
            nothing but `x` for the backward pass. "auto" is "pallas" on CUDA GPUs and "xla"
            elsewhere; "interpret" runs the kernels on the CPU, for tests.

    Returns:
        Features of x's shape and dtype.

    Raises:
        ValueError: for an unknown implementation.
    """
    dispatch.check("gated_mlp", implementation, IMPLEMENTATIONS)
    weights = gamma, beta, w11, b11, w12, b12, w2, b2
    kernels = find_kernels("pallas_mlp", implementation, x, w11)
    if kernels is None:
        return _reference(x, branch_scale, *weights)
    split = split_batch("gated_mlp", x.shape[0], x, w11)
    if branch_scale is None:
        branch_scale = jnp.ones(x.shape[0], jnp.float32)
    rows = x.size // x.shape[-1]
    plans = kernels.make_plans(
        rows // split.parts,
        rows // x.shape[0],
        *w11.shape,
        x.dtype,
        interpret=implementation == "interpret",
    )
    return _fused(plans, split, x, branch_scale, weights)


def _reference(x: Array, branch_scale: Array | None, *weights: Array) -> Array:
    gamma, beta, w11, b11, w12, b12, w2, b2 = weights
    dtype = x.dtype
    y = x.astype(jnp.float32)
    y -= y.mean(axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + EPSILON)
    y = (y * gamma + beta).astype(dtype)
    gate = jax.nn.gelu(y @ w11.astype(dtype) + b11.astype(dtype), approximate=False)
    y = gate * (y @ w12.astype(dtype) + b12.astype(dtype))
    y = y @ w2.astype(dtype) + b2.astype(dtype)
    if branch_scale is not None:
        scale = jax.lax.stop_gradient(branch_scale)
        y *= scale.reshape((-1,) + (1,) * (x.ndim - 1)).astype(dtype)
    return x + y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(
    plans: Any, split: Split, x: Array, branch_scale: Array, weights: tuple[Array, ...]
) -> Array:
    """The block by its kernel on CUDA, by the reference elsewhere; the choice falls at lowering."""
    return _fused_forward(plans, split, x, branch_scale, weights)[0]


def _fused_forward(
    plans: Any, split: Split, x: Array, branch_scale: Array, weights: tuple[Array, ...]
) -> tuple[Array, tuple]:
    return _run_forward(plans, split, x, branch_scale, weights), (x, branch_scale, weights)


def _fused_backward(plans: Any, split: Split, saved: tuple, dout: Array) -> tuple:
    x, branch_scale, weights = saved
    dx, gradients = _run_backward(plans, split, x, branch_scale, dout, weights)
    return dx, jnp.zeros_like(branch_scale), gradients


_fused.defvjp(_fused_forward, _fused_backward)


# Jitted, so that blocks of the same shapes are traced and lowered once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_forward(
    plans: Any, split: Split, x: Array, branch_scale: Array, weights: tuple[Array, ...]
) -> Array:
    plan = plans.forward
    cuda = functools.partial(dispatch.kernels("pallas_mlp").forward, plan)

    def run(x: Array, branch_scale: Array, weights: tuple[Array, ...]) -> Array:
        args = (x, branch_scale, *weights)
        return dispatch.on_cuda(cuda, _reference, *args, interpret=plan.interpret)

    return split.over(run, (0, 0, None), 0)(x, branch_scale, weights)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_backward(
    plans: Any,
    split: Split,
    x: Array,
    branch_scale: Array,
    dout: Array,
    weights: tuple[Array, ...],
) -> tuple[Array, tuple[Array, ...]]:
    def otherwise(x: Array, branch_scale: Array, dout: Array, *weights: Array) -> tuple:
        _, pull = jax.vjp(lambda x, *w: _reference(x, branch_scale, *w), x, *weights)
        return pull(dout)

    plan = plans.backward
    cuda = functools.partial(dispatch.kernels("pallas_mlp").backward, plan)

    def run(x: Array, branch_scale: Array, dout: Array, weights: tuple[Array, ...]) -> tuple:
        args = (x, branch_scale, dout, *weights)
        dx, *gradients = dispatch.on_cuda(cuda, otherwise, *args, interpret=plan.interpret)
        return dx, tuple(gradients)

    return split.over(run, (0, 0, 0, None), (0, SUM))(x, branch_scale, dout, weights)
