"""Convolutions of float32 maps as precise as TF32, in half precision.

TF32, in which JAX multiplies float32 on GPUs unless told otherwise, rounds factors to 10 bits of
mantissa and sums in float32; so does float16, which takes half the memory and for which cuDNN has
faster kernels. Its range is smaller: numbers beyond 65,504 overflow, those below 6e-8 vanish.
Gradients, which do get that small, are bfloat16.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrtspike_jax.ops import dispatch


def conv_relu(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c features"],
    bias: Float[Array, " features"],
    implementation: str = "auto",
) -> Float[Array, "n h w features"]:
    """relu(conv(x) + bias), with zeros around the map and a result of the same size.

    Args:
        x: Feature maps, float32.
        kernel: Weights, float32.
        bias: Added to each pixel, float32.
        implementation: "auto" and "pallas" multiply float16 on CUDA GPUs, unless
            `jax_default_matmul_precision` asks for more than TF32, and float32 elsewhere; "xla"
            multiplies float32; "interpret" multiplies float16 on the CPU, for tests.

    Returns:
        Feature maps, float32.

    Raises:
        ValueError: for an unknown implementation.
    """
    dispatch.check("conv_relu", implementation)
    if not dispatch.uses_kernels(implementation) or _asks_for_more_than_tf32():
        return _reference(x, kernel, bias)
    return _half(implementation == "interpret", x, kernel, bias)


def _asks_for_more_than_tf32() -> bool:
    return jax.config.jax_default_matmul_precision not in (
        None,
        "default",
        "fastest",
        "tensorfloat32",
    )


def _conv(x: Array, kernel: Array) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def _reference(x: Array, kernel: Array, bias: Array) -> Array:
    return jax.nn.relu(_conv(x, kernel) + bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _half(interpret: bool, x: Array, kernel: Array, bias: Array) -> Array:
    def cuda(*args: Array) -> Array:
        return _reference(*(a.astype(jnp.float16) for a in args)).astype(x.dtype)

    return dispatch.on_cuda(cuda, _reference, x, kernel, bias, interpret=interpret)


def _half_forward(interpret: bool, *args: Array) -> tuple[Array, tuple[Array, ...]]:
    y = _half(interpret, *args)
    return y, (*args[:2], y)


def _half_backward(interpret: bool, saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    x, kernel, y = saved
    dy = jnp.where(y > 0, dy, 0)

    def pull(dtype: Any, x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        x, kernel, dy = (a.astype(dtype) for a in (x, kernel, dy))
        return tuple(g.astype(jnp.float32) for g in jax.vjp(_conv, x, kernel)[1](dy))

    branches = (functools.partial(pull, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    dx, dkernel = dispatch.on_cuda(*branches, x, kernel, dy, interpret=interpret)
    return dx, dkernel, dy.sum((0, 1, 2))


_half.defvjp(_half_forward, _half_backward)
