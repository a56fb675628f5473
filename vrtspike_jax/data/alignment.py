"""Alignment logs: which spike steps were recorded during the exposure of each blurred frame.

A CSV file with the header `frame_idx,t0,t1,event_count,seq`. `t0` and `t1` are the times, in
seconds, of the first and the last spike step of the exposure, both included; `seq` is the name of
the sequence, with or without its split in front; `event_count` is informative.
"""

import csv
import math
import os
import pathlib

from vrtspike_jax.data.errors import DataError

COLUMNS = ("frame_idx", "t0", "t1", "event_count", "seq")
# A row is some 60 bytes, so this is a million frames and more.
MAX_BYTES = 2**27
MAX_STEP = 2**48

Exposure = tuple[int, int]


class AlignmentLog:
    """The exposures of an alignment log, in spike steps.

    Args:
      path: the CSV file.
      steps_per_second: spike steps a second.

    Raises:
      DataError: a missing, oversized or unreadable file, a wrong header, or a row that is not a
        frame number and two finite times in order; names the line.
    """

    def __init__(self, path: str | os.PathLike[str], steps_per_second: float):
        self.path = pathlib.Path(path)
        self._rate = steps_per_second
        self._exposures: dict[tuple[str, int], Exposure] = {}
        try:
            size = self.path.stat().st_size
            if size > MAX_BYTES:
                raise DataError(f"{path}: found {size} bytes, wanted at most {MAX_BYTES}")
            with open(self.path, newline="", encoding="utf-8") as file:
                self._read(file)
        except FileNotFoundError:
            raise DataError(f"{path}: no such alignment log") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: not a readable CSV file: {error}") from None

    def __len__(self) -> int:
        return len(self._exposures)

    def exposure(self, sequence: str, frame: int, split: str = "") -> Exposure:
        """Half-open (first, last) spike steps of the exposure of a frame.

        Args:
          sequence: the name of the sequence.
          frame: the frame's number, as in its file name.
          split: tried in front of the sequence's name if that alone is not in the log.

        Raises:
          DataError: no such row.
        """
        for name in (sequence, f"{split}/{sequence}"):
            if (name, frame) in self._exposures:
                return self._exposures[name, frame]
        raise DataError(
            f"{self.path}: found no exposure of frame {frame} of sequence {sequence!r}; "
            f"wanted a row with frame_idx {frame}"
        )

    def _read(self, file: object) -> None:
        rows = csv.reader(file)
        header = tuple(cell.strip() for cell in next(rows, []))
        if header != COLUMNS:
            raise DataError(
                f"{self.path}: found header {','.join(header)[:200]!r}, wanted {','.join(COLUMNS)}"
            )
        for row in rows:
            if row:
                self._add(row, f"{self.path}, line {rows.line_num}")

    def _add(self, row: list[str], where: str) -> None:
        if len(row) != len(COLUMNS):
            raise DataError(f"{where}: found {len(row)} columns, wanted {len(COLUMNS)}")
        number, begin, end, _, sequence = (cell.strip() for cell in row)
        try:
            frame, t0, t1 = int(number), float(begin), float(end)
        except ValueError:
            raise DataError(
                f"{where}: found {number[:40]!r}, {begin[:40]!r}, {end[:40]!r}; "
                "wanted a frame number and two times in seconds"
            ) from None
        if not (math.isfinite(t0) and math.isfinite(t1) and t0 < t1):
            raise DataError(f"{where}: found t0={t0}, t1={t1}; wanted finite times with t0 < t1")
        parts = pathlib.PurePosixPath(sequence).parts
        if not parts or sequence.startswith("/") or ".." in parts:
            raise DataError(
                f"{where}: found sequence {sequence[:200]!r}, wanted a name inside the data set"
            )
        key = ("/".join(parts), frame)
        if key in self._exposures:
            raise DataError(f"{where}: found frame {frame} of {sequence!r} twice")
        self._exposures[key] = self._steps(t0, t1, where)

    def _steps(self, t0: float, t1: float, where: str) -> Exposure:
        # Times are rounded to microseconds in the file, so steps are rounded, not cut.
        first = math.floor(t0 * self._rate + 0.5)
        last = first + math.floor((t1 - t0) * self._rate + 0.5)
        if not 0 <= first <= last < MAX_STEP:
            raise DataError(
                f"{where}: found an exposure of steps {first} to {last}, wanted them from 0 on, "
                "inside the recording"
            )
        return first, last + 1
