"""Turning a published download into a prepared set: checked, resumable, faults counted.

A run that was killed goes on with the sequence it had reached. The result reads like that of the
TFDS builders in `data/`, which cannot resume.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from vrtspike_jax.data.errors import DataError
from vrtspike_jax.data.layouts import LayoutOptions, find_readable
from vrtspike_jax.data.paths import Root
from vrtspike_jax.data.records import FORMAT, TILE
from vrtspike_jax.data.sequences import Sequence
from vrtspike_jax.data.shards import Shard, load_shard, publish, voxel_statistics, write_shard
from vrtspike_jax.data.verify import VerifyOptions, verify_sequences

VERSION = "1.0.0"

# (frames done, frames in all, sequence)
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A published data set: the name of the prepared one, the layout of its files, its splits."""

    name: str
    layout: str
    splits: tuple[str, ...]


KINDS = {
    "gopro": Kind("gopro_spike", "gopro", ("train", "test")),
    "x4k": Kind("x4k_spike", "x4k", ("train", "val")),
    # The unified folder that the PyTorch original trains from: every folder in it is a split.
    "svrt": Kind("svrt_spike", "plain", ()),
}


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """How to prepare a set.

    Attributes:
      splits: which ones; empty takes all that the kind has.
      tile: side of an image tile in pixels; 0 keeps the image files byte for byte.
      bins: time bins for which the voxel statistics are measured.
      threads: frames encoded at the same time; 0 takes one a core.
      steps, blur_folder, spike_scale, alignment_log, steps_per_second, head_columns, allow_links,
        max_image_pixels: as in `config.data`.
    """

    splits: tuple[str, ...] = ()
    tile: int = TILE
    bins: int = 32
    threads: int = 0
    steps: int = 0
    blur_folder: str = "blur"
    spike_scale: tuple[float, float] = (0.5, 0.5)
    alignment_log: str = ""
    steps_per_second: float = 1000.0
    head_columns: int = 0
    allow_links: bool = False
    max_image_pixels: int = 2**26

    @property
    def variant(self) -> str:
        """The part of the set's folder that tells variants apart, as a TFDS config does."""
        parts = ["tiled" if self.tile else "whole"]
        parts += [self.blur_folder] if self.blur_folder != "blur" else []
        parts += [str(self.steps)] if self.steps else []
        return "_".join(parts)

    def layout_options(self, layout: str) -> LayoutOptions:
        """The part that says where files are."""
        return _pick(LayoutOptions, dataclasses.asdict(self) | {"layout": layout})

    def verify_options(self) -> VerifyOptions:
        """The part that says what files must be."""
        return _pick(VerifyOptions, dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class PrepareReport:
    """What came out.

    Attributes:
      folder: the prepared set: `config.data.root` with `config.data.source="tfds"`.
      sequences, frames: how many there are in each split.
      skipped: (split, sequence, reason) of those that were left out.
      voxel: `bins`, and `mean` and `std` of log(1 + count) in the first split, for
        `config.data.voxel`.
    """

    folder: pathlib.Path
    sequences: dict[str, int]
    frames: dict[str, int]
    skipped: tuple[tuple[str, str, str], ...]
    voxel: dict[str, float]


def prepare(
    kind: str,
    root: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    options: PrepareOptions | None = None,
    progress: Progress = lambda done, total, name: None,
) -> PrepareReport:
    """Verifies a published set and writes it as `<data_dir>/<name>/<variant>/1.0.0`.

    A sequence with a fault is left out, and listed in the report. A second run goes on where the
    first was stopped; if that had finished, nothing is written, and its report is returned.

    Args:
      kind: one of `KINDS`.
      root: the folder of the published files.
      data_dir: where TFDS sets are kept.
      options: the rest.
      progress: called after each frame.

    Raises:
      ValueError: no such kind, folder or split; no sequence without a fault; or there is a set
        made from other files or with other options.
    """
    options = options or PrepareOptions()
    if kind not in KINDS:
        raise DataError(f"found kind {kind!r}, wanted one of {sorted(KINDS)}")
    skipped: list[tuple[str, str, str]] = []
    found = _find(KINDS[kind], Root(pathlib.Path(root), options.allow_links), options, skipped)
    identities = {(s, q.files.name): _identity(q, options) for s, q in _pairs(found)}
    identity = _hash(sorted(f"{s}/{name}: {i}" for (s, name), i in identities.items()))
    folder = pathlib.Path(data_dir) / KINDS[kind].name / options.variant / VERSION
    partial = folder.with_name(f"{VERSION}.partial")
    if not folder.exists():
        partial.mkdir(parents=True, exist_ok=True)
        shards = _encode(found, identities, partial, options, skipped, progress)
        publish(shards, KINDS[kind].name, folder, _report(shards, options, skipped, identity))
    shutil.rmtree(partial, ignore_errors=True)
    return _read_report(folder, identity)


def _find(
    kind: Kind, root: Root, options: PrepareOptions, skipped: list[tuple[str, str, str]]
) -> dict[str, list[Sequence]]:
    """Verified sequences of each split; those with faults go to `skipped`."""
    found = {}
    layout = options.layout_options(kind.layout)
    for split in options.splits or kind.splits or root.folders(root.path):

        def skip(name: str, error: DataError, split: str = split) -> None:
            skipped.append((split, name, str(error)))

        readable = find_readable(root, split, layout, skip)
        found[split] = verify_sequences(readable, options.verify_options(), skip)
    _check_any(found, skipped, root.path)
    return found


def _encode(
    found: dict[str, list[Sequence]],
    identities: dict[tuple[str, str], str],
    partial: pathlib.Path,
    options: PrepareOptions,
    skipped: list[tuple[str, str, str]],
    progress: Progress,
) -> dict[str, list[Shard]]:
    """The shards of all sequences; writes those that are not there yet."""
    shards: dict[str, list[Shard]] = {split: [] for split in found}
    total, done = sum(len(sequence.files) for _, sequence in _pairs(found)), 0
    with concurrent.futures.ThreadPoolExecutor(options.threads or os.cpu_count()) as pool:
        for split, sequence in _pairs(found):
            name, frames = sequence.files.name, len(sequence.files)
            identity = identities[split, name]
            path = partial / f"{identity}.array_record"
            frame = iter(range(done + 1, done + frames + 1))

            def on_frame(frame: Iterator[int] = frame, name: str = f"{split}/{name}") -> None:
                progress(next(frame), total, name)

            try:
                shard = load_shard(path, identity) or write_shard(
                    path, identity, sequence, options.tile, options.bins, pool, on_frame
                )
                shards[split].append(shard)
            except DataError as error:
                skipped.append((split, name, str(error)))
            done += frames
            progress(done, total, f"{split}/{name}")
    _check_any(shards, skipped, partial)
    return {split: entries for split, entries in shards.items() if entries}


def _check_any(
    found: dict[str, list], skipped: list[tuple[str, str, str]], where: pathlib.Path
) -> None:
    if not any(found.values()):
        reason = f"; the first fault: {skipped[0][2]}" if skipped else ""
        raise DataError(f"{where}: found no usable sequence in splits {list(found)}{reason}")


def _report(
    shards: dict[str, list[Shard]],
    options: PrepareOptions,
    skipped: list[tuple[str, str, str]],
    identity: str,
) -> dict[str, Any]:
    return {
        "identity": identity,
        "sequences": {split: len(entries) for split, entries in shards.items()},
        "frames": {s: sum(len(e.sequence.frames) for e in done) for s, done in shards.items()},
        "skipped": skipped,
        "voxel": voxel_statistics(next(iter(shards.values())), options.bins),
    }


def _read_report(folder: pathlib.Path, identity: str) -> PrepareReport:
    try:
        values = json.loads((folder / "report.json").read_text())
        same = values.pop("identity") == identity
        values["skipped"] = tuple(tuple(entry) for entry in values["skipped"])
        report = PrepareReport(folder=folder, **values)
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder}: found another data set there, wanted none") from None
    if not same:
        raise DataError(
            f"{folder}: found a set made from other files or with other options; wanted none "
            "(remove it, or choose another data folder)"
        )
    return report


def _pairs(found: dict[str, list[Sequence]]) -> Iterator[tuple[str, Sequence]]:
    return ((split, sequence) for split, entries in found.items() for sequence in entries)


def _identity(sequence: Sequence, options: PrepareOptions) -> str:
    """Changes with the files of a sequence (names, lengths, times) and with the options."""
    values = dataclasses.asdict(options) | {"format": FORMAT, "threads": 0, "splits": ()}
    parts = [json.dumps(values, sort_keys=True), sequence.files.name]
    for group in (sequence.files.blur, sequence.files.sharp, sequence.files.spikes):
        for i in range(len(group)):
            status = os.stat(group.path(i))
            parts.append(f"{group.names[i]} {status.st_size} {status.st_mtime_ns}")
    return _hash(parts)


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _pick(cls: type, values: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in names})
