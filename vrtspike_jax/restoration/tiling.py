"""Overlapping spatial tiles of one size, cut from two grids and blended without a seam.

Frames (H, W) and spike voxels (Hs, Ws) cover the same field of view at different resolutions, so a
tile is a window in both. Along each axis a tile starts and ends on a multiple of `unit`: a multiple
of 8 frame pixels (the model's coarsest scale is 1/8) that is also a whole number of spike pixels.
Where the two sizes share no such unit of reasonable length (720 rows against 251), the voxels are
sampled at frame resolution instead, with the bilinear half-pixel rule that the model itself uses.

Blending is a running weighted mean: with W the sum of the weights so far,

    acc <- acc + (w / W) * (x - acc),    W <- W + w.

This equals sum(w x) / sum(w) up to rounding, and unlike that quotient it returns `x` exactly where
every tile agrees on `x`: an identity model goes through tiling unchanged, bit for bit.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float32, Num

MULTIPLE = 8  # frame pixels; the model halves its resolution three times
MINIMUM = 64  # frame pixels; an 8 x 8 attention window at 1/8 scale
_LONGEST_UNIT = 128  # frame pixels; beyond this, sample the voxels at frame resolution


@dataclasses.dataclass(frozen=True)
class Axis:
    """Where the tiles lie along one image axis. All numbers are pixels.

    Attributes:
      size: length of the image.
      padded: length after mirroring it at its end; a multiple of `unit`, at least 64.
      tile: length of every tile.
      starts: first pixel of each tile in the padded image, ascending; together they cover it.
      spike_size: length of the voxel grid.
      spike_tile: length of a tile in voxels handed to the model.
      spike_starts: first voxel of each tile in the padded grid; None: sample at frame resolution.
    """

    size: int
    padded: int
    tile: int
    starts: tuple[int, ...]
    spike_size: int
    spike_tile: int
    spike_starts: tuple[int, ...] | None

    @property
    def overlap(self) -> int | None:
        """Fewest pixels that two neighbouring tiles share; None for a single tile."""
        neighbours = zip(self.starts, self.starts[1:], strict=False)
        return min((left + self.tile - right for left, right in neighbours), default=None)

    def weights(self, index: int) -> Float32[np.ndarray, "tile"]:
        """Raised-cosine weights of tile `index`: flat at the image's border, falling in overlaps.

        Two neighbours' weights add up to 1 where only they overlap; all weights are above 0.
        """
        weights = np.ones(self.tile)
        start = self.starts[index]
        if index > 0:
            overlap = self.starts[index - 1] + self.tile - start
            weights[:overlap] *= cosine_rise(overlap)
        if index + 1 < len(self.starts):
            overlap = start + self.tile - self.starts[index + 1]
            weights[self.tile - overlap :] *= cosine_rise(overlap)[::-1]
        return weights.astype(np.float32)


def cosine_rise(length: int) -> np.ndarray:
    """Raised-cosine ramp through an overlap, in (0, 1); it and its reverse add up to 1."""
    return np.sin(np.pi / 2 * (np.arange(length) + 0.5) / max(length, 1)) ** 2


def window_starts(size: int, window: int, overlap: int, unit: int = 1) -> tuple[int, ...]:
    """First positions of equally long windows that cover [0, size) and overlap their neighbours.

    The windows are spread evenly and the last one ends at `size`. Neighbours share at least
    `overlap` positions (fewer only where less than one `unit` would be left to advance by).

    Args:
      size: length to cover, a multiple of `unit`.
      window: length of a window, a multiple of `unit`, at most `size`.
      overlap: positions that neighbours share, 0 <= overlap < window.
      unit: every start is a multiple of it.

    Raises:
      ValueError: for an overlap that leaves no way to advance.
    """
    if not 0 <= overlap < window:
        raise ValueError(
            f"overlap {overlap} of windows of {window}: wanted 0 <= overlap < {window}"
        )
    if size <= window:
        return (0,)
    stride = max(1, (window - overlap) // unit)
    travel = (size - window) // unit
    gaps = math.ceil(travel / stride)
    return tuple(unit * (i * travel // gaps) for i in range(gaps + 1))


def plan_axis(size: int, spike_size: int, tile: int | None, overlap: int) -> Axis:
    """Lays tiles along one axis. `tile` None: one tile that covers everything.

    Raises:
      ValueError: for sizes below 1, a tile below 64, or an overlap not in [0, tile).
    """
    if size < 1 or spike_size < 1:
        raise ValueError(f"image axis of {size} pixels and {spike_size} spike pixels: wanted >= 1")
    if tile is not None and tile < MINIMUM:
        raise ValueError(f"tile {tile}: wanted at least {MINIMUM} pixels")
    shared = math.gcd(size, spike_size)
    unit = math.lcm(MULTIPLE, size // shared)
    aligned = unit <= _LONGEST_UNIT
    if not aligned:
        unit = MULTIPLE
    smallest = _round_up(MINIMUM, unit)
    padded = max(_round_up(size, unit), smallest)
    if tile is None:
        length, overlap = padded, 0
    else:
        if not 0 <= overlap < tile:
            raise ValueError(f"tile overlap {overlap}: wanted 0 <= overlap < tile ({tile})")
        length = min(max(tile // unit * unit, smallest), padded)
    starts = window_starts(padded, length, min(overlap, length - unit), unit)
    if not aligned:
        return Axis(size, padded, length, starts, spike_size, length, None)
    # Exact divisions: starts and lengths are multiples of unit.
    spike_starts = tuple(start * spike_size // size for start in starts)
    spike_tile = length * spike_size // size
    return Axis(size, padded, length, starts, spike_size, spike_tile, spike_starts)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tiles of one image size: every pair of a row window and a column window."""

    rows: Axis
    cols: Axis

    @property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """(row index, column index) of every tile, in reading order."""
        return tuple(itertools.product(range(len(self.rows.starts)), range(len(self.cols.starts))))

    @property
    def resampled(self) -> bool:
        """Whether the voxels are handed to the model at frame resolution, as float32."""
        return self.rows.spike_starts is None or self.cols.spike_starts is None

    def cut_frames(self, frames: Num[np.ndarray, "T H W C"], tile: tuple[int, int]) -> np.ndarray:
        """The tile's window of the frames, mirrored where it reaches beyond the image."""
        picks = [
            _mirrored(axis.size, axis.padded, axis.starts[i], axis.tile)
            for axis, i in zip((self.rows, self.cols), tile, strict=True)
        ]
        return frames[:, picks[0]][:, :, picks[1]]

    def cut_voxels(self, voxels: Num[np.ndarray, "T Hs Ws K"], tile: tuple[int, int]) -> np.ndarray:
        """The same field of view from the voxel grid.

        Raises:
          ValueError: the grid is resampled, and the voxels are still counts. Interpolation comes
            after the logarithm: hand in what `normalize_counts` returns.
        """
        if self.resampled and not np.issubdtype(voxels.dtype, np.floating):
            raise ValueError(
                f"found voxels of type {voxels.dtype} with spikes that have to be resampled; "
                "wanted normalised voxels, float32"
            )
        for position, (axis, i) in enumerate(zip((self.rows, self.cols), tile, strict=True), 1):
            if axis.spike_starts is not None:
                spike_padded = axis.padded * axis.spike_size // axis.size
                pick = _mirrored(
                    axis.spike_size, spike_padded, axis.spike_starts[i], axis.spike_tile
                )
                voxels = voxels[(slice(None),) * position + (pick,)]
            else:
                voxels = _sample(voxels, position, axis, axis.starts[i])
        return voxels


def plan_grid(
    frame_size: tuple[int, int],
    spike_size: tuple[int, int],
    tile: int | tuple[int, int] | None = None,
    overlap: int = 0,
) -> Grid:
    """Lays tiles over frames of `frame_size` (H, W) and voxels of `spike_size` (Hs, Ws).

    Args:
      frame_size: height and width of the frames in pixels, any size.
      spike_size: height and width of the voxel grid in pixels, any size.
      tile: side of a tile in frame pixels, or (height, width), rounded down to what both grids
        allow; None: the whole image is one tile.
      overlap: pixels that neighbouring tiles share at least.

    Raises:
      ValueError: for a tile below 64 or an overlap not in [0, tile).
    """
    height, width = tile if isinstance(tile, tuple) else (tile, tile)
    return Grid(
        plan_axis(frame_size[0], spike_size[0], height, overlap),
        plan_axis(frame_size[1], spike_size[1], width, overlap),
    )


def _mirrored(size: int, padded: int, start: int, length: int) -> slice | np.ndarray:
    """Indices [start, start + length) of an axis of `size` mirrored to `padded` at its end."""
    if start + length <= size:
        return slice(start, start + length)
    return np.pad(np.arange(size), (0, padded - size), mode="symmetric")[start : start + length]


def _sample(voxels: np.ndarray, position: int, axis: Axis, start: int) -> np.ndarray:
    """Linear interpolation along one axis at the frame pixels of a tile, half-pixel centres."""
    pick = _mirrored(axis.size, axis.padded, start, axis.tile)
    rows = np.arange(axis.size)[pick]
    where = np.clip((rows + 0.5) * axis.spike_size / axis.size - 0.5, 0, axis.spike_size - 1)
    below = np.floor(where).astype(int)
    above = np.minimum(below + 1, axis.spike_size - 1)
    shape = [1] * voxels.ndim
    shape[position] = axis.tile
    fraction = (where - below).astype(np.float32).reshape(shape)
    low = np.take(voxels, below, position).astype(np.float32)
    return low + fraction * (np.take(voxels, above, position).astype(np.float32) - low)


class Canvas:
    """Accumulates the tiles of one clip into whole frames by the running weighted mean."""

    def __init__(self, grid: Grid, num_frames: int, channels: int = 3):
        self._grid = grid
        size = (grid.rows.size, grid.cols.size)
        self.frames = np.zeros((num_frames, *size, channels), np.float32)
        self._weight = np.zeros(size, np.float32)

    def add(self, tile: tuple[int, int], restored: Float32[np.ndarray, "T h w C"]) -> None:
        """Blends a restored tile in; what lies in the padding is dropped."""
        rows, cols = self._grid.rows, self._grid.cols
        top, left = rows.starts[tile[0]], cols.starts[tile[1]]
        height, width = min(rows.tile, rows.size - top), min(cols.tile, cols.size - left)
        weight = np.outer(rows.weights(tile[0])[:height], cols.weights(tile[1])[:width])
        window = (slice(top, top + height), slice(left, left + width))
        total = self._weight[window]
        first = not total.any()
        total += weight
        if first:  # nothing to blend with yet: the formula would give this, more slowly
            self.frames[(slice(None), *window)] = restored[:, :height, :width]
            return
        share = (weight / total)[..., None]
        for frame, new in zip(self.frames, restored, strict=True):
            kept = frame[window]
            kept += share * (new[:height, :width] - kept)


# What `apply` takes and gives: frames and voxels of B tiles, and their restored frames.
Apply = Callable[[np.ndarray, np.ndarray], object]
Inputs = tuple[Num[np.ndarray, "T H W C"], Num[np.ndarray, "T Hs Ws K"]]


def stream_tiled(
    apply: Apply, clips: Iterable[Inputs], grid: Grid, batch_size: int = 1
) -> Iterator[Float32[np.ndarray, "T H W C"]]:
    """Restores clips tile by tile; a batch may hold tiles of several clips.

    While a batch is computed the next one is cut and the last one is blended.

    Args:
      apply: (frames [B,T,h,w,C], voxels [B,T,hs,ws,K]) -> restored [B,T,h,w,C]. Called with one
        shape only, B = batch_size; it may return before its result is ready, as JAX does.
      clips: (frames, voxels) of each clip, in whatever number format `apply` takes. Taken one by
        one, at most a batch ahead of what is yielded.
      grid: from `plan_grid`, for these sizes.
      batch_size: tiles in a call; the last batch is filled up by repeating its last tile.

    Yields:
      The restored frames of each clip, in order.
    """
    running: tuple[list[Job], object] | None = None
    for batch in _batches(_jobs(clips, grid), batch_size):
        filled = batch + [batch[-1]] * (batch_size - len(batch))
        result = apply(
            np.stack([grid.cut_frames(job.inputs[0], job.tile) for job in filled]),
            np.stack([grid.cut_voxels(job.inputs[1], job.tile) for job in filled]),
        )
        if hasattr(result, "copy_to_host_async"):
            result.copy_to_host_async()
        if running is not None:
            yield from _collect(*running, grid.tiles[-1])
        running = (batch, result)
    if running is not None:
        yield from _collect(*running, grid.tiles[-1])


def restore_tiled(
    apply: Apply, clips: Iterable[Inputs], grid: Grid, batch_size: int = 1
) -> list[Float32[np.ndarray, "T H W C"]]:
    """All of what `stream_tiled` yields."""
    return list(stream_tiled(apply, clips, grid, batch_size))


@dataclasses.dataclass(frozen=True)
class Job:
    """One tile of one clip."""

    canvas: Canvas
    inputs: Inputs
    tile: tuple[int, int]


def _jobs(clips: Iterable[Inputs], grid: Grid) -> Iterator[Job]:
    for inputs in clips:
        canvas = Canvas(grid, len(inputs[0]), inputs[0].shape[-1])
        for tile in grid.tiles:
            yield Job(canvas, inputs, tile)


def _batches(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    jobs = iter(jobs)
    while batch := list(itertools.islice(jobs, size)):
        yield batch


def _collect(batch: list[Job], result: object, last: tuple[int, int]) -> Iterator[np.ndarray]:
    """Blends a batch in; yields the clips whose last tile was among it."""
    for job, restored in zip(batch, np.asarray(result, np.float32), strict=False):
        job.canvas.add(job.tile, restored)
        if job.tile == last:
            yield job.canvas.frames
