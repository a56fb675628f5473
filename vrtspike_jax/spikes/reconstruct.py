"""Plain reconstructions from spikes: texture from playback (TFP) and from intervals (TFI).

A pixel gathers its intensity I (0 to 1 a step) and fires at a threshold c, so it fires at a rate
I / c and every c / I steps. TFP inverts the rate, TFI the interval (Zhu et al., "A retina-inspired
sampling method for visual texture reconstruction", ICME 2019). Both return I.
"""

import numpy as np
from jaxtyping import Float32

from vrtspike_jax.spikes.bits import as_uint8


def tfp(
    spikes: np.ndarray,
    moment: int | None = None,
    window: int | None = None,
    threshold: float = 1.0,
) -> Float32[np.ndarray, "*n H W"]:
    """Texture from playback: threshold times the mean of a window of steps.

    Args:
      spikes: [..., S, H, W] of 0 or 1.
      moment: step around which the window lies; None is the middle, S // 2.
      window: steps of the window, cut where it leaves 0..S; None takes all S steps.
      threshold: the camera's firing threshold, in units of full intensity times steps.

    Returns:
      float32 [..., H, W], intensity cut to 0..1.

    Raises:
      ValueError: not [..., S, H, W], moment outside 0..S-1, window < 1 or threshold <= 0.
    """
    spikes = _checked(spikes, threshold)
    steps = spikes.shape[-3]
    moment = _moment(moment, steps)
    first, last = 0, steps
    if window is not None:
        if window < 1:
            raise ValueError(f"found window {window}, wanted at least 1 step")
        first = max(0, moment - window // 2)
        last = min(steps, moment - window // 2 + window)
    count = spikes[..., first:last, :, :].sum(axis=-3, dtype=np.uint32)
    return np.minimum(count * np.float32(threshold / (last - first)), 1).astype(np.float32)


def tfi(
    spikes: np.ndarray, moment: int | None = None, threshold: float = 1.0
) -> Float32[np.ndarray, "*n H W"]:
    """Texture from intervals: threshold over the interval between spikes around a moment.

    The light of step m went into the first spike at or after m, and was gathered since the last
    spike before m; the interval is the distance of these two. Where one of the two lies outside
    the recording the nearest interval seen whole is taken, but at least the unfinished stretch. A
    pixel with a single spike has the interval S (that much is known: one spike in S steps), a
    pixel without spikes has the intensity 0.

    Args:
      spikes: [..., S, H, W] of 0 or 1.
      moment: step m, 0 to S-1; None is the middle, S // 2.
      threshold: the camera's firing threshold, in units of full intensity times steps.

    Returns:
      float32 [..., H, W], intensity cut to 0..1.

    Raises:
      ValueError: not [..., S, H, W], moment outside 0..S-1, or threshold <= 0.
    """
    spikes = _checked(spikes, threshold)
    *lead, steps, height, width = spikes.shape
    moment = _moment(moment, steps)
    clips = spikes.reshape(-1, steps, height * width)
    intensity = [np.float32(threshold) / _intervals(clip, moment) for clip in clips]
    return np.minimum(np.stack(intensity), 1).astype(np.float32).reshape(*lead, height, width)


def _intervals(spikes: np.ndarray, moment: int) -> np.ndarray:
    """[S, N] uint8 -> [N] float32 steps; infinite without any spike."""
    steps = len(spikes)
    # 1 + the last spike before the moment, and S - the first one from it on; 0 for none.
    before = np.zeros(spikes.shape[1], np.int32)
    after = np.zeros_like(before)
    for t in range(moment):
        np.maximum(before, spikes[t] * np.int32(t + 1), out=before)
    for t in range(moment, steps):
        np.maximum(after, spikes[t] * np.int32(steps - t), out=after)
    interval = (steps - after + 1 - before).astype(np.float32)
    one_sided = (before == 0) | (after == 0)
    if one_sided.any():
        interval[one_sided] = _one_sided_intervals(spikes[:, one_sided], moment)
    return interval


def _one_sided_intervals(spikes: np.ndarray, moment: int) -> np.ndarray:
    """Intervals of pixels whose spikes all lie before `moment`, or all at or after it: [N]."""
    steps = len(spikes)
    interval = np.full(spikes.shape[1], np.inf, np.float32)
    count = spikes.sum(axis=0, dtype=np.int32)
    interval[count == 1] = steps
    # Mirrored in time, the pixels with only later spikes are the same case.
    for several, mirrored in (
        ((count > 1) & ~spikes[moment:].any(axis=0), spikes),
        ((count > 1) & ~spikes[:moment].any(axis=0), spikes[::-1]),
    ):
        if not several.any():
            continue
        times = mirrored[:, several] * np.arange(1, steps + 1, dtype=np.int32)[:, None]
        last, one_before = _two_largest(times)
        # `last` is 1 + the step of the last spike; the stretch after it holds no spike at all.
        interval[several] = np.maximum(last - one_before, steps + 1 - last)
    return interval


def _two_largest(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ranked = np.partition(values, len(values) - 2, axis=0)
    return ranked[-1], ranked[-2]


def _checked(spikes: np.ndarray, threshold: float) -> np.ndarray:
    spikes = as_uint8(spikes)
    if spikes.ndim < 3 or 0 in spikes.shape:
        raise ValueError(f"found spikes of shape {spikes.shape}, wanted [..., S, H, W]")
    if not threshold > 0:
        raise ValueError(f"found threshold {threshold}, wanted a positive number")
    return spikes


def _moment(moment: int | None, steps: int) -> int:
    moment = steps // 2 if moment is None else moment
    if not 0 <= moment < steps:
        raise ValueError(f"found moment {moment}, wanted a step of 0 to {steps - 1}")
    return moment
