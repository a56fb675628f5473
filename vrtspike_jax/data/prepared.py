"""Frames of a prepared data set (TFDS, ArrayRecord), read without its builder's code."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from vrtspike_jax.data.errors import DataError
from vrtspike_jax.data.geometry import Crop, Geometry
from vrtspike_jax.data.paths import Root
from vrtspike_jax.data.records import FORMAT, FrameRecord
from vrtspike_jax.data.sequences import Sequence

MAX_SIDE = 2**14
MAX_STEPS = 2**20


@dataclasses.dataclass(frozen=True)
class PreparedSequence:
    """What the metadata of a prepared set says about a sequence.

    Attributes:
      name: its name.
      frames: the names of its frames.
      geometry: sizes of frames and spikes.
      steps: spike steps of an exposure.
      tile: height and width of an image tile.
    """

    name: str
    frames: tuple[str, ...]
    geometry: Geometry
    steps: int
    tile: tuple[int, int]

    @classmethod
    def of(cls, sequence: Sequence, tile: int) -> "PreparedSequence":
        """The entry of a sequence of files; `tile` is as for `records.encode_frame`."""
        first, last = sequence.exposures[0]
        frames = tuple(sequence.files.frame_name(i) for i in range(len(sequence.files)))
        tile_size = (tile, tile) if tile else sequence.geometry.frame
        return cls(sequence.files.name, frames, sequence.geometry, last - first, tile_size)

    def to_json(self) -> dict[str, Any]:
        """As it stands in `metadata.json`."""
        return {
            "name": self.name,
            "frames": list(self.frames),
            "frame_size": list(self.geometry.frame),
            "spike_size": list(self.geometry.spike),
            "steps": self.steps,
            "tile": list(self.tile),
        }

    @classmethod
    def from_json(cls, entry: Any, where: str) -> "PreparedSequence":
        """Reads an entry of `metadata.json`, which may be damaged or hostile.

        Raises:
          DataError: fields are missing, of another kind, or sizes out of range.
        """
        try:
            frame, spike, tile = (
                _sizes(entry[key]) for key in ("frame_size", "spike_size", "tile")
            )
            name, frames, steps = entry["name"], tuple(entry["frames"]), entry["steps"]
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: found a broken entry of a sequence: {error!r}") from None
        if (
            not isinstance(name, str)
            or not all(isinstance(f, str) for f in frames)
            or not frames
            or None in (frame, spike, tile)
            or not _whole(steps, MAX_STEPS)
        ):
            raise DataError(f"{where}: found a broken entry of sequence {str(name)[:200]!r}")
        return cls(name, frames, Geometry(frame, spike), steps, tile)


def metadata(splits: dict[str, list[PreparedSequence]], **more: Any) -> dict[str, Any]:
    """The contents of `metadata.json`: sequences of each split, in the order of their records."""
    entries = {split: [s.to_json() for s in found] for split, found in splits.items()}
    return {"format": FORMAT, "splits": entries, **more}


class PreparedStore:
    """A `FrameStore` over a split of a prepared set.

    Args:
      root: the folder with `dataset_info.json`; shards are not read from outside of it.
      split: "train", ...

    Raises:
      DataError: not a prepared set, another format, no such split, or records are missing.
    """

    def __init__(self, root: Root, split: str):
        self._where = str(root.path)
        builder = _open_builder(root)
        self._sequences = _read_sequences(builder, root, split)
        self.lengths = tuple(len(s.frames) for s in self._sequences)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        for path in builder.info.splits[split].filepaths:
            if not root.inside(os.path.relpath(path, root.path)).is_file():
                raise DataError(f"{path}: no such file, wanted a shard of split {split!r}")
        try:
            self._records = builder.as_data_source(split=split)
            count = len(self._records)
        except Exception as error:
            # Riegeli reports damaged shards with exceptions of several kinds.
            raise DataError(f"{self._where}: split {split!r} cannot be opened: {error}") from None
        if count != self._starts[-1]:
            raise DataError(
                f"{self._where}: found {count} records of split {split!r}, wanted "
                f"{self._starts[-1]} by metadata.json"
            )

    def sequence_name(self, sequence: int) -> str:
        return self._sequences[sequence].name

    def frame_name(self, sequence: int, frame: int) -> str:
        return self._sequences[sequence].frames[frame]

    def geometry(self, sequence: int) -> Geometry:
        return self._sequences[sequence].geometry

    def steps(self, sequence: int) -> int:
        """Spike steps of an exposure."""
        return self._sequences[sequence].steps

    def read(
        self, sequence: int, frame: int, crop: Crop
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        entry = self._sequences[sequence]
        name = f"{self._where}: record of {entry.name}/{entry.frames[frame]}"
        number = int(self._starts[sequence]) + frame
        try:
            example = self._records[number]
        except Exception as error:
            raise DataError(f"{name}: cannot be read: {error}") from None
        wanted = (entry.name.encode(), entry.frames[frame].encode())
        if (example["sequence"], example["frame"]) != wanted:
            raise DataError(f"{name}: found a record of {example['sequence']}/{example['frame']}")
        sizes = (entry.steps, *entry.geometry.spike)
        return FrameRecord(name, entry.geometry.frame, entry.tile, sizes).decode(example, crop)


def _open_builder(root: Root) -> Any:
    # Slow to import, and only this source needs it.
    import tensorflow_datasets as tfds

    if not root.inside("dataset_info.json").is_file():
        raise DataError(
            f"{root.path}: found no dataset_info.json, wanted the folder of a prepared data set "
            f"(such as <data_dir>/gopro_spike/1.0.0); found {root.folders(root.path)[:20]}"
        )
    try:
        return tfds.builder_from_directory(root.path)
    except Exception as error:
        raise DataError(f"{root.path}: not a readable TFDS data set: {error}") from None


def _read_sequences(builder: Any, root: Root, split: str) -> tuple[PreparedSequence, ...]:
    where = root.path / "metadata.json"
    values = builder.info.metadata
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise DataError(f"{where}: found format {found!r}, wanted {FORMAT}; prepare the set again")
    splits = values.get("splits")
    if not isinstance(splits, dict) or split not in splits or split not in builder.info.splits:
        raise DataError(
            f"{where}: found splits {sorted(splits) if isinstance(splits, dict) else splits!r}, "
            f"wanted {split!r}"
        )
    found = tuple(PreparedSequence.from_json(entry, str(where)) for entry in splits[split])
    if not found:
        raise DataError(f"{where}: found no sequences in split {split!r}")
    return found


def _sizes(values: Any) -> tuple[int, int] | None:
    """(height, width), or None if they are no sizes."""
    height, width = values if isinstance(values, list) and len(values) == 2 else (0, 0)
    return (height, width) if _whole(height, MAX_SIDE) and _whole(width, MAX_SIDE) else None


def _whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def prepared_folder(data_dir: str | os.PathLike[str], name: str, version: str) -> pathlib.Path:
    """Where TFDS keeps a data set."""
    return pathlib.Path(data_dir) / name / version
