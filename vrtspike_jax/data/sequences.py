"""What a data set in files consists of: sequences of blurred frames, sharp frames and spikes."""

import dataclasses
import os
import re

from vrtspike_jax.data.alignment import Exposure
from vrtspike_jax.data.errors import DataError
from vrtspike_jax.data.geometry import Geometry
from vrtspike_jax.spikes.camera import CameraConfig


@dataclasses.dataclass(frozen=True)
class FileList:
    """Files of one folder. Names are kept apart from the folder: sets have a million frames."""

    folder: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> str:
        """The path of file i."""
        return os.path.join(self.folder, self.names[i])


@dataclasses.dataclass(frozen=True)
class SequenceFiles:
    """The files of one sequence, counted and matched by name, but not opened yet.

    Attributes:
      name: its folder below the split, with "/".
      blur, sharp: N images each; image i of both is the same moment.
      spikes: N `.dat` files, one an exposure, or a single one.
      exposures: half-open (first, last) steps of each frame in the single `.dat`; None: each
        exposure is a whole file.
      gapless: whether `exposures` must fill the `.dat` to its end.
      camera: the SpikeCV `config.yaml` nearest to the spikes, inside the data set.
    """

    name: str
    blur: FileList
    sharp: FileList
    spikes: FileList
    exposures: tuple[Exposure, ...] | None
    gapless: bool = False
    camera: CameraConfig | None = None

    def __len__(self) -> int:
        return len(self.blur)

    def frame_name(self, i: int) -> str:
        """The name of frame i: its file name without the ending."""
        return stem(self.blur.names[i])


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A sequence whose files have been verified.

    Attributes:
      files: the files.
      geometry: pixels of its frames and spikes, the same throughout.
      head_columns: extra bits after each stored row of its `.dat` files.
      exposures: half-open (first, last) steps of each frame, in its `.dat`.
    """

    files: SequenceFiles
    geometry: Geometry
    head_columns: int
    exposures: tuple[Exposure, ...]

    def spike_path(self, i: int) -> str:
        """The `.dat` that holds the exposure of frame i."""
        return self.files.spikes.path(i if len(self.files.spikes) > 1 else 0)


def stem(name: str) -> str:
    """A file name without its ending."""
    return os.path.splitext(name)[0]


def frame_number(name: str) -> int:
    """The number in a frame's file name.

    "00000012.png" is 12.

    Raises:
      DataError: the name is no number.
    """
    if not re.fullmatch(r"\d{1,18}", stem(name), re.ASCII):
        raise DataError(f"{name}: found a frame name that is no number, wanted one like 00000012")
    return int(stem(name))


def x4k_number(name: str) -> int:
    """The spike step at the middle of a frame of X4K1000FPS + spike, from its file name.

    Recorded frames lie 4 steps apart ("0003" is step 12); "0003_002" is the third of the three
    steps that were interpolated after it, step 15.

    Raises:
      DataError: the name is of another form.
    """
    match = re.fullmatch(r"(\d{1,15})(?:_(\d{3}))?", stem(name), re.ASCII)
    if not match or int(match[2] or 0) > 2:
        raise DataError(
            f"{name}: found another frame name, wanted one like 0003 or 0003_002 (000 to 002)"
        )
    return int(match[1]) * 4 + (int(match[2]) + 1 if match[2] else 0)
