"""Biases whose gradient comes from another operation than the one that adds them.

A bias gets the sum over rows of its sum's gradient. As a pass of its own, that takes as long as it
takes to read the rows once more. An operation whose backward pass has the rows at hand can sum them
on the way: it takes the bias, makes nothing of its value and returns its gradient. Where the bias
is added, it is a constant (`jax.lax.stop_gradient`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def row_sum(
    gradient: Float[Array, "b ... c"], scale: Float[Array, " b"] | None = None
) -> Float[Array, " c"]:
    """Sum over all axes but the last, in float32, of samples times their `scale`."""
    rows = gradient.astype(jnp.float32)
    if scale is not None:
        rows *= scale.reshape(-1, *[1] * (rows.ndim - 1))
    return rows.sum(range(rows.ndim - 1))


@jax.custom_vjp
def carry(
    x: Float[Array, "b ... c"], bias: Float[Array, " c"], scale: Float[Array, " b"] | None = None
) -> Float[Array, "b ... c"]:
    """x, which contains `scale` * `bias` already, for operations without kernels."""
    del bias, scale
    return x


def _carry_forward(x: Array, bias: Array, scale: Array | None = None) -> tuple[Array, tuple]:
    return x, (jnp.zeros_like(bias), scale)


def _carry_backward(saved: tuple, gradient: Array) -> tuple:
    bias, scale = saved
    nothing = None if scale is None else jnp.zeros_like(scale)
    return gradient, row_sum(gradient, scale).astype(bias.dtype), nothing


carry.defvjp(_carry_forward, _carry_backward)
