"""A spike camera, simulated: integrate and fire.

Every step a pixel adds the current I_t = gray_t + dark current + noise_t to its accumulator, and
fires where that reaches the threshold c; firing subtracts c and keeps the rest:

    a_t = a_{t-1} + I_t;   s_t = [a_t >= c];   a_t <- a_t - c s_t

The start a_{-1} is uniform in [0, c), as a camera that has long been running would have it. The
accumulator runs on from exposure to exposure: simulate a clip in one piece, or hand the state on.
"""

from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

Threshold = float | np.ndarray


def integrate_and_fire(
    current: Float32[np.ndarray, "T H W"],
    threshold: Threshold,
    start: Float32[np.ndarray, "H W"],
) -> tuple[UInt8[np.ndarray, "T H W"], Float32[np.ndarray, "H W"]]:
    """Runs the accumulators through `current`; no randomness in here.

    Only float32 additions, comparisons and selections in a fixed order, so that
    `vrtspike_jax.spikes.simulate_jax.integrate_and_fire` gives the same bits.

    Args:
      current: what each pixel gathers each step, in units of full intensity.
      threshold: c, one number or [H, W].
      start: the accumulators before the first step; left untouched.

    Returns:
      (spikes 0 or 1, accumulators after the last step).
    """
    current = np.asarray(current, np.float32)
    size = current.shape[1:]
    threshold = np.ascontiguousarray(np.broadcast_to(np.asarray(threshold, np.float32), size))
    accumulator = np.array(start, np.float32)
    spikes = np.empty(current.shape, np.bool_)
    spent = np.empty_like(accumulator)
    for gathered, fired in zip(current, spikes, strict=True):
        np.add(accumulator, gathered, out=accumulator)
        np.greater_equal(accumulator, threshold, out=fired)
        # Ten times faster than a masked subtraction, and as exact: c * 1 or c * 0 round nothing.
        spent[...] = fired
        np.multiply(spent, threshold, out=spent)
        np.subtract(accumulator, spent, out=accumulator)
    return spikes.view(np.uint8), accumulator


def simulate(
    gray: Float32[np.ndarray, "T H W"],
    threshold: float = 1.0,
    seed: int = 0,
    *,
    dark_current: float = 0.0,
    noise_std: float = 0.0,
    threshold_std: float = 0.0,
    start: np.ndarray | None = None,
    return_state: bool = False,
) -> Any:
    """Fires the spikes that a camera would see of a sequence of gray pictures.

    Args:
      gray: intensities in 0..1, one picture a step.
      threshold: c; 1 means that a white pixel fires every step, 2 every second step.
      seed: of the start phase and the noise; the same seed gives the same bytes.
      dark_current: what a pixel gathers each step without light, in units of full intensity.
      noise_std: standard deviation of normal noise on what each pixel gathers each step.
      threshold_std: relative standard deviation of the pixels' thresholds (fixed pattern noise,
        drawn once for `seed`; thresholds stay above c / 10).
      start: accumulators [H, W] to go on from, as returned by an earlier call; None draws a
        random phase.
      return_state: also return the accumulators.

    Returns:
      spikes uint8 [T, H, W] of 0 or 1; with `return_state` the pair (spikes, accumulators [H, W]).

    Raises:
      ValueError: gray is not [T, H, W] in 0..1 or not finite, threshold <= 0, or a negative
        dark current or deviation.
    """
    gray = _checked_gray(gray)
    for name, value in (
        ("dark_current", dark_current),
        ("noise_std", noise_std),
        ("threshold_std", threshold_std),
    ):
        if not value >= 0:
            raise ValueError(f"found {name} {value}, wanted 0 or more")
    if not threshold > 0:
        raise ValueError(f"found threshold {threshold}, wanted a positive number")
    size = gray.shape[1:]
    # One stream for each kind of randomness: switching one on leaves the others as they were.
    phase_rng, pattern_rng, noise_rng = np.random.default_rng(seed).spawn(3)
    thresholds: Threshold = threshold
    if threshold_std:
        spread = pattern_rng.standard_normal(size, np.float32) * np.float32(threshold_std)
        thresholds = np.float32(threshold) * np.maximum(1 + spread, np.float32(0.1))
    if start is None:
        start = phase_rng.random(size, np.float32) * np.asarray(thresholds, np.float32)
    elif np.shape(start) != size:
        raise ValueError(f"found accumulators of shape {np.shape(start)}, wanted {size}")
    current = gray
    if dark_current:
        current = current + np.float32(dark_current)
    if noise_std:
        noise = noise_rng.standard_normal(gray.shape, np.float32)
        current = current + noise * np.float32(noise_std)
    spikes, state = integrate_and_fire(current, thresholds, start)
    return (spikes, state) if return_state else spikes


def _checked_gray(gray: np.ndarray) -> np.ndarray:
    gray = np.asarray(gray)
    if gray.ndim != 3 or 0 in gray.shape[1:]:
        raise ValueError(f"found gray of shape {gray.shape}, wanted [T, H, W]")
    if not np.issubdtype(gray.dtype, np.floating):
        raise ValueError(f"found gray of type {gray.dtype}, wanted floating point in 0..1")
    low, high = gray.min(initial=0), gray.max(initial=0)
    # Resampled pictures overshoot by rounding; 8-bit values by far.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"found gray values {low} to {high}, wanted 0 to 1")
    return gray.astype(np.float32, copy=False)
