"""Clips of T frames, numbered over all sequences of a data set."""

import dataclasses
from collections.abc import Sequence as SequenceOf
from typing import Protocol

import numpy as np

from vrtspike_jax.data.errors import DataError
from vrtspike_jax.data.geometry import Crop, Geometry, whole_frame
from vrtspike_jax.spikes.dat import DatError

ClipArrays = dict[str, np.ndarray]


class ClipSource(Protocol):
    """Where clips come from; any object with these methods can be trained on.

    Attributes:
      trained_steps: where clips differ in the steps of their exposures, those of the model; else 0.
    """

    trained_steps: int

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> ClipArrays:
        """Clip i, whole frames: `blur`, `sharp`, raw `spikes` (see `vrtspike_jax.data`)."""

    def name(self, i: int) -> str:
        """Names clip i: "sequence/frame", the frame being its first."""

    def geometry(self, i: int) -> Geometry:
        """The sizes of clip i, known without reading it."""

    def geometries(self) -> dict[str, Geometry]:
        """All different sizes, each with the name of a sequence that has it."""

    def read(self, i: int, crop: Crop) -> ClipArrays:
        """A window of clip i; reads and decodes as little else as it can.

        Raises:
          DataError: a file is missing, damaged, or not what it was when it was verified.
        """


class FrameStore(Protocol):
    """Sequences of frames, each of which can be read by itself."""

    lengths: tuple[int, ...]

    def sequence_name(self, sequence: int) -> str: ...

    def frame_name(self, sequence: int, frame: int) -> str: ...

    def geometry(self, sequence: int) -> Geometry: ...

    def steps(self, sequence: int) -> int: ...

    def read(
        self, sequence: int, frame: int, crop: Crop
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(blur [h, w, 3], sharp [h, w, 3], spikes [S, hs, ws]) of one frame."""


@dataclasses.dataclass(frozen=True)
class Window:
    """A clip: which frames of which sequence, and which of them no earlier clip has shown."""

    sequence: int
    frames: tuple[int, ...]
    new: tuple[bool, ...]


class SlidingClips:
    """Every clip of T frames that fits into a sequence, each frame a possible first one.

    Args:
      store: where frames come from.
      length: frames a clip (T).
      stride: distance of neighbouring frames of a clip.

    Raises:
      DataError: a clip is longer than a sequence.
    """

    trained_steps = 0

    def __init__(self, store: FrameStore, length: int, stride: int = 1):
        self.store = store
        self._offsets = np.arange(length) * stride
        span = int(self._offsets[-1]) + 1
        counts = np.array([n - span + 1 for n in store.lengths], np.int64)
        for i in np.flatnonzero(counts < 1)[:1]:
            raise DataError(
                f"{store.sequence_name(i)}: found {store.lengths[i]} frames, wanted at least "
                f"{span} for a clip (clip_length={length}, frame_stride={stride})"
            )
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i: int) -> ClipArrays:
        return self.read(i, whole_frame(self.geometry(i)))

    def name(self, i: int) -> str:
        sequence, frames = self._locate(i)
        names = self.store
        return f"{names.sequence_name(sequence)}/{names.frame_name(sequence, frames[0])}"

    def geometry(self, i: int) -> Geometry:
        return self.store.geometry(self._locate(i)[0])

    def geometries(self) -> dict[str, Geometry]:
        found = {}
        for sequence in range(len(self.store.lengths)):
            geometry = self.store.geometry(sequence)
            found.setdefault(geometry, self.store.sequence_name(sequence))
        return {name: geometry for geometry, name in found.items()}

    def read(self, i: int, crop: Crop) -> ClipArrays:
        return read_clip(self.store, *self._locate(i), crop)

    def _locate(self, i: int) -> tuple[int, list[int]]:
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of {len(self)}")
        sequence = int(np.searchsorted(self._ends, i, side="right"))
        first = i - (int(self._ends[sequence - 1]) if sequence else 0)
        return sequence, (first + self._offsets).tolist()


def read_clip(store: FrameStore, sequence: int, frames: SequenceOf[int], crop: Crop) -> ClipArrays:
    """Reads a window of some frames of a sequence and stacks them.

    Raises:
      DataError: a frame cannot be read.
    """
    parts = []
    for frame in frames:
        try:
            parts.append(store.read(sequence, frame, crop))
        except (DatError, OSError) as error:
            raise DataError(str(error)) from None
    steps = {len(spikes) for _, _, spikes in parts}
    if len(steps) > 1:
        raise DataError(
            f"{store.sequence_name(sequence)}: found exposures of {sorted(steps)} steps in a clip"
        )
    blur, sharp, spikes = (np.stack(arrays) for arrays in zip(*parts, strict=True))
    return {"blur": blur, "sharp": sharp, "spikes": spikes}


def scoring_windows(store: FrameStore, length: int, stride: int = 1) -> list[Window]:
    """Clips that show every frame of every sequence, in order, for scoring.

    Clips do not overlap, but for the last one of a sequence, which reaches back where the frames
    do not divide; `new` marks the frames to count. With a stride, the frames 0, stride,
    2 * stride, ... are the sequence.

    Raises:
      DataError: a clip is longer than a sequence.
    """
    windows = []
    for sequence, count in enumerate(store.lengths):
        frames = range(0, count, stride)
        if len(frames) < length:
            raise DataError(
                f"{store.sequence_name(sequence)}: found {len(frames)} frames, wanted at least "
                f"{length} for a clip (clip_length={length}, frame_stride={stride})"
            )
        for start in range(0, len(frames), length):
            begin = min(start, len(frames) - length)
            new = tuple(begin + k >= start for k in range(length))
            windows.append(Window(sequence, tuple(frames[begin : begin + length]), new))
    return windows
