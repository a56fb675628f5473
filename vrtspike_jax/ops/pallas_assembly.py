"""PTX in Triton kernels, where neither Triton nor what follows it finds the short form."""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

LOG2_E = math.log2(math.e)


def assembly(code: str, *args: Array) -> Array:
    """Applies PTX code to every element of arrays.

    Args:
        code: takes its operands from $1, $2, ... and leaves the result in $0.
        *args: arrays of one shape and dtype, float32 or int32, which are the result's too.
    """
    register = "f" if args[0].dtype == "float32" else "r"
    [result] = plgpu.elementwise_inline_asm(
        code,
        args=args,
        constraints=",".join(["=" + register] + [register] * len(args)),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)],
    )
    return result


def multiply_add(a: Array | float, b: Array, c: Array | float, interpret: bool) -> Array:
    """a * b + c in one instruction: of a product and a sum, none is made. a, c broadcast to b."""
    if interpret:
        return a * b + c
    a, c = (jnp.broadcast_to(jnp.float32(term), b.shape) for term in (a, c))
    return assembly("fma.rn.f32 $0, $1, $2, $3;", a, b, c)


def opaque(number: Array, interpret: bool) -> Array:
    """The same int32 numbers, of which the compiler does not know where they come from."""
    return number if interpret else assembly("mov.u32 $0, $1;", number)
