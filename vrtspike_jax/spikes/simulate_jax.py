"""The integrate-and-fire camera of `vrtspike_jax.spikes.simulate` in JAX, for accelerators.

Given the same current, thresholds and start, both give the same bits: the step holds nothing but
float32 additions, a comparison and a selection, which leave no room for another rounding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


@jax.jit
def integrate_and_fire(
    current: Float[Array, "T *N"],
    threshold: Float[Array, "*N"] | float,
    start: Float[Array, "*N"],
) -> tuple[UInt8[Array, "T *N"], Float[Array, "*N"]]:
    """Runs the accumulators through `current`; see `vrtspike_jax.spikes.simulate`.

    Args:
      current: [T, ...] float32, what each pixel gathers each step, in units of full intensity.
      threshold: one number, or an array that broadcasts to one step.
      start: [...] float32, the accumulators before the first step.

    Returns:
      (spikes uint8 0 or 1 [T, ...], accumulators [...] after the last step).
    """
    threshold = jnp.broadcast_to(jnp.asarray(threshold, jnp.float32), start.shape)

    def step(accumulator, gathered):
        accumulator = accumulator + gathered
        fired = accumulator >= threshold
        # A product here could be fused into one rounding with the subtraction.
        accumulator = jnp.where(fired, accumulator - threshold, accumulator)
        return accumulator, fired.astype(jnp.uint8)

    state, spikes = jax.lax.scan(
        step, jnp.asarray(start, jnp.float32), jnp.asarray(current, jnp.float32)
    )
    return spikes, state


def simulate(
    key: Array,
    gray: Float[Array, "T *N"],
    threshold: float | Float[Array, "*N"] = 1.0,
    dark_current: float = 0.0,
    noise_std: float = 0.0,
    start: Float[Array, "*N"] | None = None,
) -> tuple[UInt8[Array, "T *N"], Float[Array, "*N"]]:
    """Fires spikes with randomness from a JAX key; for use inside jitted input streams.

    The draws differ from those of the NumPy form (other generator), their distribution does not.

    Args:
      key: `jax.random.key`.
      gray: [T, ...] intensities in 0..1; values are not checked.
      threshold, dark_current, noise_std, start: as in `vrtspike_jax.spikes.simulate`; threshold
        may be [...] for fixed pattern noise.

    Returns:
      (spikes uint8 0 or 1 [T, ...], accumulators [...] to go on from).
    """
    gray = jnp.asarray(gray, jnp.float32)
    phase_key, noise_key = jax.random.split(key)
    if start is None:
        start = jax.random.uniform(phase_key, gray.shape[1:]) * threshold
    noise = noise_std * jax.random.normal(noise_key, gray.shape)
    return integrate_and_fire(gray + dark_current + noise, threshold, start)
