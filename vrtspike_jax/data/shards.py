"""Writing a prepared data set: a shard for each sequence, each complete or not there at all."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath

from vrtspike_jax.data.prepared import PreparedSequence, metadata
from vrtspike_jax.data.records import Example, encode_frame, features
from vrtspike_jax.data.sequences import Sequence
from vrtspike_jax.spikes.voxel import voxel_counts

# One record a chunk gives random access; PNG does not compress any further, spikes hardly.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Frames waiting to be written, for each thread that encodes.
_FRAMES_AHEAD = 3
# Frames of a sequence whose voxels are counted for the statistics.
_SAMPLED_FRAMES = 4


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
      path: the ArrayRecord file.
      identity: of the files and options that it was made from.
      sequence: what it holds.
      num_bytes: bytes of its records.
      histogram: how often each voxel count 0..255 came up, in some of its frames.
    """

    path: pathlib.Path
    identity: str
    sequence: PreparedSequence
    num_bytes: int
    histogram: tuple[int, ...]


def load_shard(path: pathlib.Path, identity: str) -> Shard | None:
    """The shard that an earlier run finished, or None if there is none, or from other files."""
    try:
        values = json.loads(_note(path).read_text())
        if values["identity"] != identity or path.stat().st_size != values["file_bytes"]:
            return None
        sequence = PreparedSequence.from_json(values["sequence"], str(path))
        return Shard(path, identity, sequence, values["num_bytes"], tuple(values["histogram"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Broken notes of a broken run: the shard is written again.
        return None


def write_shard(
    path: pathlib.Path,
    identity: str,
    sequence: Sequence,
    tile: int,
    bins: int,
    pool: concurrent.futures.ThreadPoolExecutor,
    on_frame: Callable[[], None],
) -> Shard:
    """Encodes a sequence and writes it, with a note beside it that says that it is complete.

    Args:
      path: the file to write.
      identity: kept in the note.
      sequence: verified files.
      tile: as for `encode_frame`.
      bins: time bins of the voxel statistics.
      pool: encodes frames, a few at a time.
      on_frame: called after each frame.

    Raises:
      DataError: a file of the sequence is damaged; nothing is left behind.
    """
    spec = features()
    partial = path.with_suffix(".writing")
    writer = array_record_module.ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
    num_bytes, histogram = 0, np.zeros(256, np.int64)
    sampled = set(np.linspace(0, len(sequence.files) - 1, _SAMPLED_FRAMES).astype(int).tolist())
    try:
        for i, example in enumerate(_encode_all(sequence, tile, pool)):
            record = spec.serialize_example(example)
            writer.write(record)
            num_bytes += len(record)
            if i in sampled:
                histogram += _count_voxels(example, bins)
            on_frame()
    except BaseException:
        writer.close()
        partial.unlink(missing_ok=True)
        raise
    writer.close()
    os.replace(partial, path)
    entry = PreparedSequence.of(sequence, tile)
    shard = Shard(path, identity, entry, num_bytes, tuple(histogram.tolist()))
    _write_note(shard)
    return shard


def publish(
    shards: dict[str, list[Shard]], name: str, folder: pathlib.Path, report: dict[str, Any]
) -> None:
    """Makes a TFDS set of finished shards; `folder` appears at once, complete."""
    import tensorflow_datasets as tfds

    staging = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    splits = []
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(staging), dataset_name=name, filetype_suffix="array_record"
    )
    for split, entries in shards.items():
        split_template = template.replace(split=split)
        for i, shard in enumerate(entries):
            target = split_template.sharded_filepath(shard_index=i, num_shards=len(entries))
            _link(shard.path, pathlib.Path(target))
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(shard.sequence.frames) for shard in entries],
                num_bytes=sum(shard.num_bytes for shard in entries),
                filename_template=split_template,
            )
        )
    entries = {split: [s.sequence for s in done] for split, done in shards.items()}
    tfds.folder_dataset.write_metadata(
        data_dir=staging,
        features=features(),
        split_infos=splits,
        version=folder.name,
        # The check reads with TensorFlow.
        check_data=False,
        metadata=tfds.core.MetadataDict(metadata(entries)),
        disable_shuffling=True,
    )
    (staging / "report.json").write_text(json.dumps(report, indent=2))
    os.rename(staging, folder)


def _encode_all(
    sequence: Sequence, tile: int, pool: concurrent.futures.ThreadPoolExecutor
) -> Iterator[Example]:
    """Frames in order, encoded by the pool, a few ahead of the one that is wanted."""
    ahead = _FRAMES_AHEAD * pool._max_workers
    waiting: list[concurrent.futures.Future] = []
    try:
        for frame in range(len(sequence.files)):
            waiting.append(pool.submit(encode_frame, sequence, frame, tile))
            if len(waiting) > ahead:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        for future in waiting:
            future.cancel()


def _count_voxels(example: Example, bins: int) -> np.ndarray:
    steps, height, width = example["spike_size"].tolist()
    packed = np.frombuffer(example["spikes"], np.uint8).reshape(steps, height, -1)
    spikes = np.unpackbits(packed, axis=-1, bitorder="little")[..., :width]
    return np.bincount(voxel_counts(spikes, bins).reshape(-1), minlength=256)


def _note(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".json")


def _write_note(shard: Shard) -> None:
    values = {
        "identity": shard.identity,
        "sequence": shard.sequence.to_json(),
        "num_bytes": shard.num_bytes,
        "file_bytes": shard.path.stat().st_size,
        "histogram": shard.histogram,
    }
    partial = _note(shard.path).with_suffix(".note")
    partial.write_text(json.dumps(values))
    os.replace(partial, _note(shard.path))


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has hard links.
        shutil.copyfile(source, target)


def voxel_statistics(shards: list[Shard], bins: int) -> dict[str, float]:
    """Mean and standard deviation of log(1 + count), for `config.data.voxel`."""
    histogram = np.sum([shard.histogram for shard in shards], axis=0)
    values, weight = np.log1p(np.arange(256)), histogram / max(1, histogram.sum())
    mean = float(weight @ values)
    std = float(np.sqrt(weight @ (values - mean) ** 2))
    return {"bins": bins, "mean": mean, "std": std}
