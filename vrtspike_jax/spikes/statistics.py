"""What a spike recording looks like as a whole: rates, pixels at fault, and moving pictures."""

import dataclasses
from collections.abc import Iterator

import cv2
import numpy as np

from vrtspike_jax.spikes.dat import DatFile
from vrtspike_jax.spikes.reconstruct import tfp

_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Sums over a recording.

    Attributes:
      steps: how many were read.
      firing_rate: share of all pixels and steps that fired.
      rate_by_step: the same of each step, [steps].
      rate_by_pixel: the same of each pixel, [H, W].
      silent: pixels that never fired.
      dead: silent pixels among neighbours that fired at least three times, as (row, column).
      hot: pixels that fire far more often than their neighbours, as (row, column).
    """

    steps: int
    firing_rate: float
    rate_by_step: np.ndarray
    rate_by_pixel: np.ndarray
    silent: int
    dead: list[tuple[int, int]]
    hot: list[tuple[int, int]]


def measure(recording: DatFile, start: int = 0, count: int | None = None) -> Statistics:
    """Reads a recording once, in chunks.

    Args:
      recording: the file.
      start, count: a range of steps; None reads to the end.

    Raises:
      DatError: the range leaves the file.
    """
    count = recording.num_frames - start if count is None else count
    total = np.zeros((recording.height, recording.width), np.int64)
    rates = []
    for first in range(start, start + count, _CHUNK):
        spikes = recording.read(first, min(_CHUNK, start + count - first))
        total += spikes.sum(0, dtype=np.int64)
        rates.append(spikes.reshape(len(spikes), -1).mean(1))
    if not rates:
        raise ValueError(f"{recording.path}: found {count} steps to look at, wanted at least 1")
    rate = (total / count).astype(np.float32)
    # A fault is one pixel (or two); a median over 5 x 5 looks past it.
    around = cv2.medianBlur(rate, 5) if min(rate.shape) >= 5 else np.full_like(rate, rate.mean())
    dead = (total == 0) & (around * count >= 3)
    hot = rate > np.minimum(3 * around + 0.25, 0.999)
    hot &= around < 0.9  # where everything fires all the time nothing stands out
    return Statistics(
        steps=count,
        firing_rate=float(rate.mean()),
        rate_by_step=np.concatenate(rates),
        rate_by_pixel=rate,
        silent=int((total == 0).sum()),
        dead=[(int(y), int(x)) for y, x in np.argwhere(dead)],
        hot=[(int(y), int(x)) for y, x in np.argwhere(hot)],
    )


def moving_pictures(
    recording: DatFile, start: int, count: int, window: int, pictures: int, white: float
) -> Iterator[np.ndarray]:
    """TFP pictures along a recording, uint8 [H, W].

    Args:
      recording: the file.
      start, count: the range of steps.
      window: steps of each picture.
      pictures: how many, evenly spread.
      white: the intensity that is shown white.
    """
    window = min(window, count)
    for first in np.linspace(start, start + count - window, min(pictures, count - window + 1)):
        spikes = recording.read(int(first), window)
        yield to_picture(tfp(spikes), white)


def to_picture(intensity: np.ndarray, white: float) -> np.ndarray:
    """Intensity to uint8, `white` becoming 255."""
    return np.round(np.clip(intensity / max(white, 1e-6), 0, 1) * 255).astype(np.uint8)
