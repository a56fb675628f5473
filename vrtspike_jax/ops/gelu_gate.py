"""GEGLU's gate (Shazeer, 2020): gelu(a) c, from one product of both, with their biases."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrtspike_jax.ops import dispatch
from vrtspike_jax.ops.partition import SUM, Split, find_kernels, split_batch

IMPLEMENTATIONS = ("auto", "xla", "pallas", "interpret")


def gelu_gate(
    packed: Float[Array, "b ... twice"],
    bias: Float[Array, " twice"],
    implementation: str = "auto",
) -> Float[Array, "b ... hidden"]:
    """gelu(a + bias_a) * (c + bias_c), with the exact GELU.

    Args:
        packed: a and c side by side along the channels.
        bias: Theirs, as a and c lie.
        implementation: "xla" is the reference. "pallas" has CUDA kernels, which keep nothing but
            `packed`, and sum up the gradient of `bias` on the way. "auto" is "pallas" on CUDA GPUs
            and "xla" elsewhere; "interpret" runs the kernels on the CPU, for tests.

    Returns:
        Features of packed's dtype and half its channels.

    Raises:
        ValueError: for an unknown implementation.
    """
    dispatch.check("gelu_gate", implementation, IMPLEMENTATIONS)
    kernels = find_kernels("pallas_gelu_gate", implementation, packed, bias)
    if kernels is None:
        return _reference(packed, bias)
    split = split_batch("gelu_gate", packed.shape[0], packed, bias)
    plan = kernels.make_plan(
        math.prod(packed.shape[:-1]) // split.parts,
        packed.shape[-1] // 2,
        interpret=implementation == "interpret",
    )
    return _fused(plan, split, packed, bias)


def _reference(packed: Array, bias: Array) -> Array:
    a, c = jnp.split(packed + bias.astype(packed.dtype), 2, axis=-1)
    return jax.nn.gelu(a, approximate=False) * c


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(plan: Any, split: Split, packed: Array, bias: Array) -> Array:
    return _run_forward(plan, split, packed, bias)


def _fused_forward(plan: Any, split: Split, packed: Array, bias: Array) -> tuple[Array, tuple]:
    return _fused(plan, split, packed, bias), (packed, bias)


def _fused_backward(plan: Any, split: Split, saved: tuple, dy: Array) -> tuple[Array, Array]:
    return _run_backward(plan, split, *saved, dy)


_fused.defvjp(_fused_forward, _fused_backward)


# Jitted, so that layers of the same shapes are traced and lowered once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_forward(plan: Any, split: Split, packed: Array, bias: Array) -> Array:
    cuda = functools.partial(dispatch.kernels("pallas_gelu_gate").forward, plan)

    def run(packed: Array, bias: Array) -> Array:
        return dispatch.on_cuda(cuda, _reference, packed, bias, interpret=plan.interpret)

    return split.over(run, (0, None), 0)(packed, bias)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_backward(
    plan: Any, split: Split, packed: Array, bias: Array, dy: Array
) -> tuple[Array, Array]:
    cuda = functools.partial(dispatch.kernels("pallas_gelu_gate").backward, plan)

    def otherwise(packed: Array, bias: Array, dy: Array) -> tuple[Array, Array]:
        return jax.vjp(_reference, packed, bias)[1](dy)

    def run(packed: Array, bias: Array, dy: Array) -> tuple[Array, Array]:
        return dispatch.on_cuda(cuda, otherwise, packed, bias, dy, interpret=plan.interpret)

    return split.over(run, (0, None, 0), (0, SUM))(packed, bias, dy)
