"""Voxel grids: the spikes of one exposure, counted in K equal stretches of time.

Step t of an exposure of S steps falls into bin floor(t * K / S). Steps outside the exposure are in
no bin (clamping them into the end bins would add light that the exposure never saw).
"""

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


def repeats_and_scale(steps: int, bins: int, trained: int) -> tuple[int, float]:
    """How exposures of some rate are counted for a model of another.

    A faster camera's counts are scaled down to what they would be with `trained` steps. A slower
    camera's few counts are not scaled up, as that would only spread their gaps; but where it has
    fewer steps than there are bins, each step fills all the bins that it reaches into, in shares,
    so that no bin is empty for want of steps.

    Args:
      steps: of the exposure.
      bins: K.
      trained: steps of the model's exposures; 0: unknown, and counts stay as they are.

    Returns:
      How often each step is counted, and what the counts are multiplied by then.
    """
    if not (steps and bins and trained):
        return 1, 1.0
    # Often enough that bins get about equal shares of a step.
    repeats = -(-2 * bins // steps) if steps < bins <= trained else 1
    return repeats, min(1.0, trained / steps) / repeats


def trained_counts(spikes: np.ndarray, bins: int, trained: int) -> Num[np.ndarray, "*n H W K"]:
    """Counts of exposures as a model of exposures of `trained` steps takes them.

    Args:
      spikes, bins: as in `voxel_counts`.
      trained: as in `repeats_and_scale`.

    Returns:
      [..., H, W, K]: uint8 where counts stay as they are, else float32.

    Raises:
      ValueError: too few axes, or no steps.
    """
    steps = spikes.shape[-3] if spikes.ndim > 2 else 0
    repeats, scale = repeats_and_scale(steps, bins, trained)
    spikes = np.repeat(spikes, repeats, axis=-3) if repeats > 1 else spikes
    counts = voxel_counts(spikes, bins)
    return counts if scale == 1 else counts * np.float32(scale)


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
