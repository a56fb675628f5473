"""Frames of a data set in files, read and cropped one by one."""

import numpy as np

from vrtspike_jax.data import images
from vrtspike_jax.data.geometry import Crop, Geometry
from vrtspike_jax.data.sequences import Sequence
from vrtspike_jax.spikes.dat import read_dat


class FileStore:
    """A `FrameStore` over verified sequences of files.

    Holds paths only, so it is cheap to send to worker processes.

    Args:
      sequences: from `verify_sequences`.
    """

    def __init__(self, sequences: list[Sequence]):
        self._sequences = tuple(sequences)
        self.lengths = tuple(len(s.files) for s in sequences)

    def sequence_name(self, sequence: int) -> str:
        return self._sequences[sequence].files.name

    def frame_name(self, sequence: int, frame: int) -> str:
        return self._sequences[sequence].files.frame_name(frame)

    def geometry(self, sequence: int) -> Geometry:
        return self._sequences[sequence].geometry

    def steps(self, sequence: int) -> int:
        """Spike steps of the longest exposure."""
        return max(last - first for first, last in self._sequences[sequence].exposures)

    def read(
        self, sequence: int, frame: int, crop: Crop
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Only the bytes of the crop are unpacked from the `.dat`; see `images.decode` for PNG."""
        entry = self._sequences[sequence]
        blur, sharp = (
            images.read(group.path(frame), entry.geometry.frame, crop.rows, crop.cols)
            for group in (entry.files.blur, entry.files.sharp)
        )
        first, last = entry.exposures[frame]
        spikes = read_dat(
            entry.spike_path(frame),
            *entry.geometry.spike,
            start=first,
            count=last - first,
            rows=crop.spike_rows,
            cols=crop.spike_cols,
            head_columns=entry.head_columns,
        )
        return blur, sharp, spikes
