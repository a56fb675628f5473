"""A spike camera, simulated: integrate and fire.

Every step a pixel adds the current I_t = gray_t + dark current + noise_t to its accumulator, and
fires where that reaches the threshold c; firing subtracts c and keeps the rest:

    a_t = a_{t-1} + I_t;   s_t = [a_t >= c];   a_t <- a_t - c s_t

The start a_{-1} is uniform in [0, c), as a camera that has long been running would have it. The
accumulator runs on from exposure to exposure.
"""

import numpy as np
from jaxtyping import Float32, UInt8

Threshold = float | np.ndarray

# The gray that drives the published sets' cameras: of R, G and B as they are (BT.601).
GRAY_WEIGHTS = np.float32([0.299, 0.587, 0.114])


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


class SpikeCamera:
    """A camera that keeps its state, for recordings longer than memory.

    Exposing a recording in one piece or in chunks of any size gives the same bytes.

    Args:
      height, width: pixels.
      threshold: c; 1 means that a white pixel fires every step, 2 every second step.
      seed: of the start phase and the noise.
      dark_current: what a pixel gathers each step without light, in units of full intensity.
      noise_std: standard deviation of normal noise on what each pixel gathers each step.
      threshold_std: relative standard deviation of the pixels' thresholds (fixed pattern noise;
        thresholds stay above c / 10).

    Raises:
      ValueError: threshold <= 0, or a negative dark current or deviation.
    """

    def __init__(
        self,
        height: int,
        width: int,
        threshold: float = 1.0,
        seed: int = 0,
        *,
        dark_current: float = 0.0,
        noise_std: float = 0.0,
        threshold_std: float = 0.0,
    ):
        for name, value in (
            ("dark_current", dark_current),
            ("noise_std", noise_std),
            ("threshold_std", threshold_std),
        ):
            if not value >= 0:
                raise ValueError(f"found {name} {value}, wanted 0 or more")
        if not threshold > 0:
            raise ValueError(f"found threshold {threshold}, wanted a positive number")
        # A stream for each kind of randomness: switching one on leaves the others as they were.
        phase_rng, pattern_rng, self._noise_rng = np.random.default_rng(seed).spawn(3)
        self._size = (height, width)
        self._thresholds = np.full(self._size, threshold, np.float32)
        if threshold_std:
            spread = pattern_rng.standard_normal(self._size, np.float32)
            spread *= np.float32(threshold_std)
            self._thresholds *= np.maximum(1 + spread, np.float32(0.1))
        self._dark_current = np.float32(dark_current)
        self._noise_std = np.float32(noise_std)
        # What each pixel has gathered so far, [H, W] float32.
        self.accumulators = phase_rng.random(self._size, np.float32) * self._thresholds

    def expose(self, gray: Float32[np.ndarray, "T H W"]) -> UInt8[np.ndarray, "T H W"]:
        """Fires the spikes of the next T steps.

        Raises:
          ValueError: gray is not [T, height, width] in 0..1, or not finite.
        """
        gray = _checked_gray(gray)
        if gray.shape[1:] != self._size:
            raise ValueError(f"found gray of {gray.shape[1:]} pixels, wanted {self._size}")
        current = gray + self._dark_current if self._dark_current else gray
        if self._noise_std:
            noise = self._noise_rng.standard_normal(gray.shape, np.float32)
            current = current + noise * self._noise_std
        spikes, self.accumulators = integrate_and_fire(current, self._thresholds, self.accumulators)
        return spikes


def simulate(
    gray: Float32[np.ndarray, "T H W"],
    threshold: float = 1.0,
    seed: int = 0,
    *,
    dark_current: float = 0.0,
    noise_std: float = 0.0,
    threshold_std: float = 0.0,
) -> UInt8[np.ndarray, "T H W"]:
    """Fires the spikes that a camera would see of a sequence of gray pictures.

    Exposures that follow each other belong into one call, or into one `SpikeCamera`.

    Args:
      gray: intensities in 0..1, one picture a step.
      threshold, seed, dark_current, noise_std, threshold_std: see `SpikeCamera`. The same
        arguments give the same bytes.

    Returns:
      0 or 1.

    Raises:
      ValueError: gray is not [T, H, W] in 0..1 or not finite, threshold <= 0, or a negative
        dark current or deviation.
    """
    gray = _checked_shape(gray)
    camera = SpikeCamera(
        *gray.shape[1:],
        threshold,
        seed,
        dark_current=dark_current,
        noise_std=noise_std,
        threshold_std=threshold_std,
    )
    return camera.expose(gray)


def _checked_shape(gray: np.ndarray) -> np.ndarray:
    gray = np.asarray(gray)
    if gray.ndim != 3 or 0 in gray.shape[1:]:
        raise ValueError(f"found gray of shape {gray.shape}, wanted [T, H, W]")
    return gray


def _checked_gray(gray: np.ndarray) -> np.ndarray:
    gray = _checked_shape(gray)
    if not np.issubdtype(gray.dtype, np.floating):
        raise ValueError(f"found gray of type {gray.dtype}, wanted floating point in 0..1")
    low, high = gray.min(initial=0), gray.max(initial=0)
    # Resampled pictures overshoot by rounding; 8-bit values by far.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"found gray values {low} to {high}, wanted 0 to 1")
    return gray.astype(np.float32, copy=False)
