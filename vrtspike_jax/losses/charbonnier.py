"""The Charbonnier loss: an L1 loss that is smooth at zero."""

import jax
import jax.numpy as jnp


def charbonnier(
    restored: jax.Array,
    sharp: jax.Array,
    delta: float = 1e-3,
    axis: int | tuple[int, ...] | None = None,
) -> jax.Array:
    """Mean of `sqrt((restored - sharp)**2 + delta**2)`, in float32.

    Args:
        restored: any shape, 0..1.
        sharp: the same shape, 0..1.
        delta: where the loss turns from quadratic to linear, in grey values (> 0). It is also the
            smallest value that the loss can take.
        axis: the axes to average over; all of them when None.

    Returns:
        A scalar, or the axes that were not averaged.

    Source: `CharbonnierLoss` of the original; VRT's `charbonnier` with eps = delta**2.
    """
    difference = restored.astype(jnp.float32) - sharp.astype(jnp.float32)
    return jnp.mean(jnp.sqrt(difference * difference + delta * delta), axis=axis)
