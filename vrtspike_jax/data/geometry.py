"""Crops that cover exactly the same field in frames and in spikes of another resolution.

Along each axis frames have N pixels and spikes Ns, in lowest terms N : Ns = a : b. Pixel edges of
the two meet every a frame pixels and b spike pixels, so a crop whose position and size are
multiples of a in the frame is a whole number of spike pixels, and nothing has to be resampled.
"""

import dataclasses
import math

import numpy as np

from vrtspike_jax.data.errors import DataError

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes in pixels, (height, width), of the frames and spikes of a sequence."""

    frame: Size
    spike: Size

    def __str__(self) -> str:
        (h, w), (hs, ws) = self.frame, self.spike
        return f"frames {h} x {w}, spikes {hs} x {ws}"


@dataclasses.dataclass(frozen=True)
class Crop:
    """A window: half-open (first, last) rows and columns, of the frames and of the spikes."""

    rows: tuple[int, int]
    cols: tuple[int, int]
    spike_rows: tuple[int, int]
    spike_cols: tuple[int, int]

    @property
    def shape(self) -> tuple[Size, Size]:
        """Sizes (height, width) of the window in the frames and in the spikes."""
        size = [last - first for first, last in dataclasses.astuple(self)]
        return (size[0], size[1]), (size[2], size[3])


def spike_size(height: int, width: int, scale: tuple[float, float]) -> Size:
    """Spike pixels (Hs, Ws) of frames of height x width at `scale` (vertical, horizontal)."""
    return round(height * scale[0]), round(width * scale[1])


def whole_frame(geometry: Geometry) -> Crop:
    """The crop that keeps everything."""
    (h, w), (hs, ws) = geometry.frame, geometry.spike
    return Crop((0, h), (0, w), (0, hs), (0, ws))


def check_crop(geometry: Geometry, size: int, name: str) -> None:
    """Raises DataError naming `name` unless crops of size x size (0: none) fit and align."""
    if size:
        for axis in (0, 1):
            _choices(geometry, axis, size, name)


def draw_crop(geometry: Geometry, size: int, rng: np.random.Generator) -> Crop:
    """Draws an aligned crop of size x size frame pixels, every position equally likely.

    Args:
      geometry: sizes of the sequence.
      size: side in frame pixels; 0 keeps the whole frame.
      rng: takes exactly two draws, whatever the sizes, so that what follows does not shift.

    Raises:
      DataError: the crop is larger than the frame or does not align (see `check_crop`).
    """
    where = rng.random(2)
    if not size:
        return whole_frame(geometry)
    spans = []
    for axis in (0, 1):
        unit, spike_unit, choices = _choices(geometry, axis, size, "crop")
        step = min(int(where[axis] * choices), choices - 1)
        count = size // unit
        spans.append((step * unit, step * unit + size))
        spans.append((step * spike_unit, (step + count) * spike_unit))
    rows, spike_rows, cols, spike_cols = spans
    return Crop(rows, cols, spike_rows, spike_cols)


def _choices(geometry: Geometry, axis: int, size: int, name: str) -> tuple[int, int, int]:
    """(a, b, number of positions) along an axis."""
    pixels, spikes = geometry.frame[axis], geometry.spike[axis]
    shared = math.gcd(pixels, spikes)
    unit, spike_unit = pixels // shared, spikes // shared
    what = ("height", "width")[axis]
    if size > pixels:
        raise DataError(
            f"{name}: found frames of {what} {pixels}, wanted at least crop_size={size}"
        )
    if size % unit:
        raise DataError(
            f"{name}: found crop_size={size} with {geometry}; wanted a multiple of {unit} frame "
            f"pixels ({spike_unit} spike pixels), so that both crops show the same field"
        )
    return unit, spike_unit, (pixels - size) // unit + 1
