"""Voxel grids: the spikes of one exposure, counted in K equal stretches of time.

Step t of an exposure of S steps falls into bin floor(t * K / S). Steps outside the exposure are in
no bin (clamping them into the end bins would add light that the exposure never saw).
"""

import functools
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, Num, UInt8

from vrtspike_jax.spikes.bits import as_uint8

MAX_COUNT = 255


def bin_edges(steps: int, bins: int) -> np.ndarray:
    """First step of each bin, and `steps` at the end: [bins + 1] int; empty bins where equal."""
    if steps < 1 or bins < 1:
        raise ValueError(f"found {steps} steps and {bins} bins, wanted at least 1 of each")
    # floor(t * bins / steps) >= k  <=>  t >= k * steps / bins, in whole numbers.
    return -(-np.arange(bins + 1) * steps // bins)


def voxel_counts(
    spikes: np.ndarray, bins: int, exposure: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "*n H W K"]:
    """Counts spikes in `bins` equal stretches of each exposure.

    Args:
      spikes: [..., S, H, W] of 0 or 1 (best uint8 or bool); leading axes, such as T, are kept.
      bins: K. With S < K some bins stay empty.
      exposure: (first, last) steps of the exposure, half-open, within or beyond 0..S: steps of
        `spikes` outside it are left out, and bins divide the exposure. None takes all S steps.

    Returns:
      uint8 [..., H, W, K]; counts above 255 (bins of more than 255 steps) are cut to 255.

    Raises:
      ValueError: too few axes, no steps, or an empty exposure.
    """
    return _counts(spikes, bins, exposure, saturate=True)


def is_shared(steps: int, bins: int, trained: int) -> bool:
    """Whether an exposure's steps are shared among bins, as there are too few to fill them.

    Args:
      steps: of the exposure.
      bins: K.
      trained: steps of the model's exposures; 0: unknown, and bins stay empty.
    """
    return 0 < steps < bins <= trained


@functools.lru_cache(maxsize=16)
def shares(steps: int, bins: int) -> Float32[np.ndarray, "steps bins"]:
    """What each of fewer steps than bins gives to each bin: all that it reaches into get a part."""
    repeats = -(-2 * bins // steps)  # often enough that bins get about equal parts
    part = np.arange(steps * repeats)
    matrix = np.zeros((steps, bins), np.float32)
    np.add.at(matrix, (part // repeats, part * bins // len(part)), np.float32(1 / repeats))
    return matrix


def fire_again(
    counts: Num[np.ndarray, "*n H W K"], scale: float = 1.0
) -> UInt8[np.ndarray, "*n H W K"]:
    """Whole counts of a camera that gathers these ones, and fires.

    A network that learned from whole counts makes little of fractions, as averages over pixels and
    counts of a faster camera are. So they are what a camera gathers that integrates and fires: at
    no time is it more than half a spike behind or ahead.

    Args:
      counts: averages of counts, in the order of time.
      scale: what they are multiplied by.
    """
    gathered = np.cumsum(counts, axis=-1, dtype=np.float32) * np.float32(scale)
    gathered += np.float32(0.5)
    fired = np.diff(np.floor(gathered, out=gathered), axis=-1, prepend=np.float32(0))
    return np.minimum(fired, MAX_COUNT).astype(np.uint8)


def trained_counts(
    spikes: np.ndarray,
    bins: int,
    trained: int,
    average: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Num[np.ndarray, "*n h w K"]:
    """Counts of exposures as a model of exposures of `trained` steps takes them.

    A faster or finer camera's counts become those of the model's camera (`fire_again`). A slower
    camera's few counts are not scaled up, as that would only spread their gaps; but where it has
    fewer steps than there are bins, they are shared among these (`shares`).

    Args:
      spikes, bins: as in `voxel_counts`.
      trained: steps of the model's exposures; 0: unknown, and counts stay as they are.
      average: what averages counts [..., H, W, K] to the size that the model takes; it returns what
        it was given if that has the size.

    Returns:
      [..., h, w, K]: uint8, or float32 where steps are shared among bins.

    Raises:
      ValueError: too few axes, or no steps.
    """
    steps = spikes.shape[-3] if spikes.ndim > 2 else 0
    shared = is_shared(steps, bins, trained)
    counts = found = voxel_counts(spikes, steps if shared else bins)
    if average is not None:
        counts = average(counts)
    scale = trained / steps if 0 < trained < steps else 1.0
    if scale < 1 or counts is not found:
        counts = fire_again(counts, scale)
    return counts.astype(np.float32) @ shares(steps, bins) if shared else counts


def voxelize(
    spikes: np.ndarray,
    bins: int,
    log: bool = True,
    *,
    exposure: tuple[int, int] | None = None,
    mean: float = 0.0,
    std: float = 1.0,
) -> Float32[np.ndarray, "*n H W K"]:
    """Voxel grid of each exposure: counts, log1p if `log`, then (value - mean) / std.

    Args:
      spikes, bins, exposure: as in `voxel_counts`.
      log: compress counts with log(1 + count).
      mean, std: normalisation after the logarithm; the defaults leave values as they are.

    Returns:
      float32 [..., H, W, K].

    Raises:
      ValueError: as `voxel_counts`, or std <= 0.
    """
    return normalize_counts(_counts(spikes, bins, exposure, saturate=False), log, mean, std)


def normalize_counts(
    counts: np.ndarray, log: bool = True, mean: float = 0.0, std: float = 1.0
) -> Float32[np.ndarray, "*n H W K"]:
    """Turns counts, whole or scaled, into network input: log1p if `log`, then (v - mean) / std."""
    if not std > 0:
        raise ValueError(f"found std {std}, wanted a positive number")
    if np.issubdtype(counts.dtype, np.floating):
        return (((np.log1p(counts) if log else counts) - mean) / std).astype(np.float32)
    # Few distinct values, so a table beats a logarithm of every voxel.
    size = max(int(counts.max(initial=0)) + 1, 256)
    table = np.arange(size, dtype=np.float64)
    table = (((np.log1p(table) if log else table) - mean) / std).astype(np.float32)
    if counts.dtype == np.uint8 and counts.size:
        # OpenCV's look-up is five times faster than `table[counts]`.
        return cv2.LUT(np.ascontiguousarray(counts).reshape(-1, 1), table).reshape(counts.shape)
    return table[counts]


def _counts(
    spikes: np.ndarray, bins: int, exposure: tuple[int, int] | None, saturate: bool
) -> np.ndarray:
    spikes = as_uint8(spikes)
    if spikes.ndim < 3:
        raise ValueError(f"found spikes of shape {spikes.shape}, wanted [..., S, H, W]")
    *lead, steps, height, width = spikes.shape
    first, last = (0, steps) if exposure is None else exposure
    if last <= first:
        raise ValueError(f"found exposure {first} to {last}, wanted at least one step")
    edges = np.clip(bin_edges(last - first, bins) + first, 0, steps)
    most = int(np.diff(edges).max())
    dtype = np.uint8 if most <= MAX_COUNT else np.uint32
    clips = spikes.reshape(-1, steps, height, width)
    planes = np.zeros((bins, height, width), dtype)
    result = np.empty((len(clips), height * width, bins), np.uint8 if saturate else dtype)
    for clip, grid in zip(clips, result, strict=True):
        for k in range(bins):
            # Bins are short: adding a few planes is far quicker than `np.add.reduceat`.
            np.sum(clip[edges[k] : edges[k + 1]], axis=0, dtype=dtype, out=planes[k])
        if dtype == np.uint8:
            # NumPy's own transposing copy is four times slower.
            cv2.transpose(planes.reshape(bins, -1), dst=grid)
        else:
            counts = planes.reshape(bins, -1).T
            grid[...] = np.minimum(counts, MAX_COUNT) if saturate else counts
    return result.reshape(*lead, height, width, bins)
