"""Arithmetic of a traced function: floating-point operations in its products and convolutions.

The count is read off the jaxpr, so it is the same on every platform, counts a scanned body as often
as it runs (the compiler's own `cost_analysis` counts it once), and does not grow when the compiler
recomputes. Element-wise work is left out, as is usual when a utilisation is quoted.
"""

import math
from collections.abc import Callable

import jax


def count_flops(function: Callable, *args, **kwargs) -> int:
    """Operations (one multiply and one add are two) of one call with these (abstract) arguments."""
    return _count_jaxpr(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def _count_jaxpr(jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        depth = math.prod(shape[axis] for axis in contracted)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        per_output = math.prod(kernel) // out_features
        return 2 * per_output * math.prod(equation.outvars[0].aval.shape)
    if "dot_product_attention" in name:
        return _count_attention(equation)
    if name == "scan":
        return params["length"] * _count_jaxpr(params["jaxpr"].jaxpr)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid) * _count_jaxpr(params["jaxpr"])
    if name == "cond":
        return max(_count_jaxpr(branch.jaxpr) for branch in params["branches"])
    if name == "on_cuda":
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
        return max(_count_jaxpr(params["cuda"].jaxpr), count_flops(params["otherwise"], *shapes))
    return sum(_count_jaxpr(inner) for inner in _inner_jaxprs(params))


def _count_attention(equation) -> int:
    # A fused kernel of queries (B, T, N, D) and keys (B, S, N, D): logits and their product with
    # the values; its backward pass forms five such products instead of two.
    query, key = (variable.aval.shape for variable in equation.invars[:2])
    batch, queries, heads, width = query
    products = 5 if "bwd" in equation.primitive.name else 2
    return products * 2 * batch * heads * queries * key[1] * width


def _inner_jaxprs(params: dict):
    """Jaxprs that an equation calls (jit, remat, custom_vjp, while's body once)."""
    for key, value in params.items():
        if key in ("cond_jaxpr", "fwd_jaxpr_thunk", "bwd"):
            continue
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
