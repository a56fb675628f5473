"""The `.dat` format of spike cameras: one bit a pixel and step, read and written in ranges.

A step (one readout of the sensor) is height x width bits. Bits fill a byte from the least
significant one, rows are stored from the bottom of the picture to its top, and steps follow each
other without any header. Some cameras append `head_columns` (16) columns of bookkeeping to every
stored row (SpikeCV: `with_head`, 416 columns of which 400 are picture); they are left out here.
Where height x width is no multiple of 8, a step is padded with zero bits to a whole byte.
"""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

from vrtspike_jax.spikes.bits import as_uint8

PathLike = str | os.PathLike[str]


class DatError(ValueError):
    """A `.dat` file, or a request for a part of one, does not fit the size given for it."""


class MissingDatError(DatError, FileNotFoundError):
    """The `.dat` file is not there."""


@dataclasses.dataclass(frozen=True)
class DatFile:
    """A checked `.dat` on disk; holds no open handle, so it can be sent to worker processes.

    Attributes:
      path: the file.
      height, width: pixels of the picture.
      head_columns: extra bits stored after each row, dropped on reading.
      num_frames: steps in the file (computed).

    Raises:
      DatError: the file is missing, empty, or no whole number of steps.
    """

    path: pathlib.Path
    height: int
    width: int
    head_columns: int = 0
    num_frames: int = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "path", pathlib.Path(self.path))
        _check_size(self.height, self.width, self.head_columns, str(self.path))
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError:
            raise MissingDatError(f"{self.path}: no such spike file") from None
        wanted = (
            f"a multiple of {self.frame_bytes} bytes (one step of {self.height} x {self.width}"
            + (f" with {self.head_columns} head columns" if self.head_columns else "")
            + ", one bit a pixel)"
        )
        if size == 0:
            raise DatError(f"{self.path}: found an empty file, wanted {wanted}")
        if size % self.frame_bytes:
            raise DatError(
                f"{self.path}: found {size} bytes, which is {size / self.frame_bytes:.3f} steps; "
                f"wanted {wanted}"
            )
        object.__setattr__(self, "num_frames", size // self.frame_bytes)

    @property
    def row_bits(self) -> int:
        """Stored bits a row, head included."""
        return self.width + self.head_columns

    @property
    def frame_bytes(self) -> int:
        """Stored bytes a step."""
        return frame_bytes(self.height, self.width, self.head_columns)

    def __len__(self) -> int:
        return self.num_frames

    def read(
        self,
        start: int = 0,
        count: int | None = None,
        rows: tuple[int, int] | None = None,
        cols: tuple[int, int] | None = None,
    ) -> UInt8[np.ndarray, "T h w"]:
        """Unpacks steps `start .. start + count` of a window of the picture.

        Only the bytes of that range and window are touched (the file is memory-mapped).

        Args:
          start: first step.
          count: number of steps; None reads to the end.
          rows, cols: half-open ranges (y0, y1) and (x0, x1) of the picture; None takes all.

        Returns:
          0 or 1, row 0 is the top of the picture.

        Raises:
          DatError: the range or the window leaves the file or the picture.
        """
        count = self.num_frames - start if count is None else count
        if start < 0 or count < 0 or start + count > self.num_frames:
            raise DatError(
                f"{self.path}: wanted steps {start} to {start + count}, "
                f"found {self.num_frames} steps"
            )
        y0, y1 = _window(rows, self.height, "rows", self.path)
        x0, x1 = _window(cols, self.width, "columns", self.path)
        if count == 0:
            return np.zeros((0, y1 - y0, x1 - x0), np.uint8)
        packed = np.memmap(
            self.path, np.uint8, "r", start * self.frame_bytes, (count, self.frame_bytes)
        )
        if self.row_bits % 8:
            # Rows do not begin on a byte, so there is nothing to skip before unpacking.
            bits = np.unpackbits(packed, axis=-1, bitorder="little")
            bits = bits[:, : self.height * self.row_bits]
            bits = bits.reshape(count, self.height, self.row_bits)
            return np.ascontiguousarray(bits[:, ::-1][:, y0:y1, x0:x1])
        packed = packed.reshape(count, self.height, self.row_bits // 8)
        byte0, byte1 = x0 // 8, -(-x1 // 8)
        window = packed[:, self.height - y1 : self.height - y0, byte0:byte1][:, ::-1]
        bits = np.unpackbits(np.asarray(window), axis=-1, bitorder="little")
        if (byte0 * 8, byte1 * 8) == (x0, x1):
            return bits
        return np.ascontiguousarray(bits[..., x0 - byte0 * 8 : x1 - byte0 * 8])

    def chunks(self, size: int = 256) -> Iterator[UInt8[np.ndarray, "t H W"]]:
        """Walks through the whole file, `size` steps at a time (fewer in the last chunk)."""
        if size < 1:
            raise ValueError(f"chunk size must be at least 1 step, found {size}")
        for start in range(0, self.num_frames, size):
            yield self.read(start, min(size, self.num_frames - start))


def frame_bytes(height: int, width: int, head_columns: int = 0) -> int:
    """Bytes of one stored step."""
    return -(-height * (width + head_columns) // 8)


def read_dat(
    path: PathLike,
    height: int,
    width: int,
    start: int = 0,
    count: int | None = None,
    *,
    rows: tuple[int, int] | None = None,
    cols: tuple[int, int] | None = None,
    head_columns: int = 0,
) -> UInt8[np.ndarray, "T H W"]:
    """Reads steps of a bit-packed `.dat` file as 0 or 1; see `DatFile.read`.

    Args:
      path: the file.
      height, width: pixels of the whole picture.
      start: first step.
      count: number of steps; None reads to the end.
      rows, cols: optional window (y0, y1), (x0, x1); only its bytes are read and unpacked.
      head_columns: extra bits stored after each row (16 for files written with a head).

    Raises:
      DatError (a ValueError): missing, truncated or mis-sized file, or a range outside of it.
    """
    return DatFile(pathlib.Path(path), height, width, head_columns).read(start, count, rows, cols)


def write_dat(
    path: PathLike,
    spikes: np.ndarray | Iterable[np.ndarray],
    *,
    head_columns: int = 0,
) -> int:
    """Writes steps to a bit-packed `.dat` file, in one piece or chunk by chunk.

    The file appears under its name only once it is complete.

    Args:
      path: where to write; an existing file is replaced.
      spikes: [T, H, W] of 0 or 1 (any numeric type, or bool), or an iterable of such arrays of
        equal H and W, for recordings that do not fit in memory.
      head_columns: zero bits to append to each row, for readers that expect a head.

    Returns:
      The number of steps written.

    Raises:
      ValueError: not [T, H, W], values other than 0 and 1, or chunks of unequal size.
    """
    path = pathlib.Path(path)
    chunks = [spikes] if isinstance(spikes, np.ndarray) else spikes
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    total, size = 0, None
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                chunk = _checked_bits(chunk, path)
                if size not in (None, chunk.shape[1:]):
                    raise DatError(f"{path}: found a chunk of {chunk.shape[1:]}, wanted {size}")
                size = chunk.shape[1:]
                total += len(chunk)
                file.write(_pack(chunk, head_columns).tobytes())
        if not total:
            raise DatError(f"{path}: found no steps to write, wanted at least 1")
        # mkstemp makes private files; a data set is meant to be shared.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(partial, 0o666 & ~mask)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    return total


def _pack(spikes: np.ndarray, head_columns: int) -> np.ndarray:
    flipped = spikes[:, ::-1]
    if head_columns:
        flipped = np.pad(flipped, ((0, 0), (0, 0), (0, head_columns)))
    if flipped.shape[-1] % 8 == 0:
        return np.packbits(flipped, axis=-1, bitorder="little")
    return np.packbits(flipped.reshape(len(flipped), -1), axis=-1, bitorder="little")


def _checked_bits(spikes: np.ndarray, path: pathlib.Path) -> np.ndarray:
    try:
        spikes = as_uint8(spikes)
    except ValueError as error:
        raise DatError(f"{path}: {error}") from None
    if spikes.ndim != 3 or 0 in spikes.shape[1:]:
        raise DatError(f"{path}: found spikes of shape {spikes.shape}, wanted [T, H, W]")
    if spikes.max(initial=0) > 1:
        raise DatError(f"{path}: found spike values up to {spikes.max()}, wanted 0 and 1")
    return spikes


def _check_size(height: int, width: int, head_columns: int, name: str) -> None:
    if height < 1 or width < 1 or head_columns < 0:
        raise DatError(
            f"{name}: found height {height}, width {width}, head columns {head_columns}; "
            "wanted positive sizes"
        )


def _window(
    window: tuple[int, int] | None, size: int, name: str, path: pathlib.Path
) -> tuple[int, int]:
    first, last = (0, size) if window is None else window
    if not 0 <= first < last <= size:
        raise DatError(f"{path}: wanted {name} {first} to {last}, found {size} {name}")
    return first, last
