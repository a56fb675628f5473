"""Convolutions in the forms that cuDNN is fast at, and quick to tune.

On CUDA GPUs (elsewhere they are what they look like):

- `join` fills channels up with zeros to a multiple of 8: with VRT's 194 a convolution takes 1.5 to
  1.8 times as long as with 200 (H100, bfloat16). A pass of its own would cost as much again.
- Maps of few pixels have the gradient of their kernel computed in float32: as fast there, and in
  bfloat16 cuDNN needs a second for each shape to prepare its candidates.
- `conv_relu` multiplies float16 in the place of TF32, in which JAX multiplies float32 on GPUs
  unless told otherwise. Both round factors to 10 bits of mantissa and sum in float32; float16 takes
  half the memory and a third to half the time. Its range is smaller: numbers beyond 65,504
  overflow, those below 6e-8 vanish. Gradients, which do get that small, are bfloat16.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrtspike_jax.ops import dispatch

# Up to so many pixels, over the whole batch, a map is small.
SMALL = 2**15
_TF32 = (None, "default", "fastest", "tensorfloat32")


def join(
    parts: Sequence[Float[Array, "n h w _"]], implementation: str = "auto"
) -> Float[Array, "n h w c"]:
    """Joins maps along the channels, for `conv`.

    Args:
        parts: Maps of one size.
        implementation: As `conv` takes it.

    Returns:
        The joined map; unless this is left to XLA, with zeros up to a multiple of 8 channels.
    """
    missing = -sum(part.shape[-1] for part in parts) % 8
    if missing and dispatch.uses_kernels(implementation):
        parts = [*parts, jnp.zeros((*parts[0].shape[:-1], missing), parts[0].dtype)]
    return jnp.concatenate(parts, axis=-1)


def conv(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c_in features"],
    implementation: str = "auto",
) -> Float[Array, "n h w features"]:
    """Convolution with zeros around the map and a result of the same size.

    Args:
        x: Feature maps, perhaps of more channels than the kernel takes: the last do not count.
        kernel: Weights, of x's dtype.
        implementation: "auto" and "pallas" take cuDNN's favourite form on CUDA GPUs; "xla" leaves
            all to the compiler; "interpret" takes that form on the CPU, for tests.

    Returns:
        Feature maps in x's dtype.

    Raises:
        ValueError: for an unknown implementation.
    """
    dispatch.check("conv", implementation)
    extra = x.shape[-1] - kernel.shape[2]
    if extra:
        kernel = jnp.pad(kernel, [(0, 0), (0, 0), (0, extra), (0, 0)])
    if not dispatch.uses_kernels(implementation):
        return _plain(x, kernel)
    return _conv(implementation == "interpret", x, kernel)


def conv_relu(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c features"],
    bias: Float[Array, " features"],
    implementation: str = "auto",
) -> Float[Array, "n h w features"]:
    """relu(conv(x) + bias) of float32, with zeros around the map and a result of the same size.

    Args:
        x: Feature maps, float32.
        kernel: Weights, float32.
        bias: Added to each pixel, float32.
        implementation: "auto" and "pallas" multiply float16 on CUDA GPUs, unless the map is small
            or `jax_default_matmul_precision` asks for more than TF32; "xla" multiplies float32;
            "interpret" multiplies float16 on the CPU, for tests.

    Returns:
        Feature maps, float32.

    Raises:
        ValueError: for an unknown implementation.
    """
    dispatch.check("conv_relu", implementation)
    precise = jax.config.jax_default_matmul_precision not in _TF32
    if not dispatch.uses_kernels(implementation) or precise or _is_small(x):
        return _plain_relu(x, kernel, bias)
    return _half_relu(implementation == "interpret", x, kernel, bias)


def _is_small(x: Array) -> bool:
    return x.size <= SMALL * x.shape[-1]


def _plain(x: Array, kernel: Array) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def _pull(dtype: jnp.dtype, x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    """Gradients of x and kernel, multiplied in `dtype`, that of a small map's kernel in float32."""

    def gradient(argument: int, dtype: jnp.dtype) -> Array:
        arrays = [x.astype(dtype), kernel.astype(dtype)]
        value, other = arrays[argument], arrays[1 - argument]

        def run(value: Array) -> Array:
            return _plain(value, other) if argument == 0 else _plain(other, value)

        return jax.vjp(run, value)[1](dy.astype(dtype))[0]

    dx = gradient(0, dtype).astype(x.dtype)
    return dx, gradient(1, jnp.float32 if _is_small(x) else dtype).astype(kernel.dtype)


def _plain_pull(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    return jax.vjp(_plain, x, kernel)[1](dy)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(interpret: bool, x: Array, kernel: Array) -> Array:
    return dispatch.on_cuda(_plain, _plain, x, kernel, interpret=interpret)


def _conv_forward(interpret: bool, *args: Array) -> tuple[Array, tuple[Array, ...]]:
    return _conv(interpret, *args), args


def _conv_backward(interpret: bool, saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    cuda = functools.partial(_pull, dy.dtype)
    return tuple(dispatch.on_cuda(cuda, _plain_pull, *saved, dy, interpret=interpret))


_conv.defvjp(_conv_forward, _conv_backward)


def _plain_relu(x: Array, kernel: Array, bias: Array) -> Array:
    return jax.nn.relu(_plain(x, kernel) + bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _half_relu(interpret: bool, x: Array, kernel: Array, bias: Array) -> Array:
    def cuda(*args: Array) -> Array:
        return _plain_relu(*(a.astype(jnp.float16) for a in args)).astype(x.dtype)

    return dispatch.on_cuda(cuda, _plain_relu, x, kernel, bias, interpret=interpret)


def _half_relu_forward(interpret: bool, *args: Array) -> tuple[Array, tuple[Array, ...]]:
    y = _half_relu(interpret, *args)
    return y, (*args[:2], y)


def _half_relu_backward(interpret: bool, saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    x, kernel, y = saved
    dy = jnp.where(y > 0, dy, 0)
    cuda = functools.partial(_pull, jnp.bfloat16)
    gradients = dispatch.on_cuda(cuda, _plain_pull, x, kernel, dy, interpret=interpret)
    return *gradients, dy.sum((0, 1, 2))


_half_relu.defvjp(_half_relu_forward, _half_relu_backward)
