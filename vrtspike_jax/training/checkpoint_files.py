"""Checkpoints as files: which there are, whether they are whole, and what they say of themselves.

A checkpoint is a directory `<workdir>/checkpoints/<step>`, written by Orbax under a temporary name
and renamed when complete:

    params/ ema/ opt/   arrays (`ema` only where an average is kept)
    data/               position of the data iterator, a JSON file per host
    meta/metadata       JSON: config, versions, metrics, names and shapes of the parameters
    checksums.json      size and CRC-32 of every other file
"""

import dataclasses
import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

FORMAT = 1
MAX_JSON_BYTES = 2**26
CHECKSUMS = "checksums.json"
SET_ASIDE = "damaged"
# Orbax rewrites these two while it commits.
UNCHECKED = {"commit_success.txt", "_CHECKPOINT_METADATA", CHECKSUMS}
_STEP = re.compile(r"[0-9]+")


class DamagedCheckpointError(ValueError):
    """A checkpoint that is incomplete or altered; the message names the file."""


class CheckpointMismatchError(ValueError):
    """A checkpoint of another model or optimiser than the config asks for."""


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself.

    Attributes:
        step: optimiser steps taken.
        config: the whole config as nested dicts.
        versions: package -> version.
        metrics: scores of this step, or None if it was not scored.
        best: `{"step": ..., "psnr_rgb": ...}` of the best step so far, or None.
        last_eval_step: the last step that was scored, 0 if none.
        params: parameter path ("vrt/conv_first/kernel") -> shape.
    """

    step: int
    config: dict[str, Any]
    versions: dict[str, str]
    metrics: dict[str, float] | None
    best: dict[str, float] | None
    last_eval_step: int
    params: dict[str, list[int]]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict, with the format's number."""
        return {"format": FORMAT, **dataclasses.asdict(self)}


def find_steps(checkpoints: Path) -> list[int]:
    """Steps of the committed checkpoints in a directory, ascending; [] if there is none."""
    if not checkpoints.is_dir():
        return []
    names = (path.name for path in checkpoints.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if _STEP.fullmatch(name))


def half_written(checkpoints: Path) -> list[Path]:
    """Temporary directories that an interrupted save left behind."""
    return sorted(checkpoints.glob("*.orbax-checkpoint-tmp*")) if checkpoints.is_dir() else []


def read_meta(checkpoint: Path) -> Meta:
    """Reads `meta/metadata`.

    Raises:
        DamagedCheckpointError: it is missing or not what this package writes.
    """
    path = checkpoint / "meta" / "metadata"
    fields = _read_json(path)
    names = {field.name: field.type for field in dataclasses.fields(Meta)}
    if not isinstance(fields, dict) or not {"format", *names} <= set(fields):
        raise DamagedCheckpointError(f"{path}: wanted the fields {', '.join(names)}")
    if fields["format"] != FORMAT:
        raise CheckpointMismatchError(
            f"{path}: format {fields['format']!r}; this version reads format {FORMAT}"
        )
    kinds = {"step": int, "config": dict, "versions": dict, "last_eval_step": int, "params": dict}
    for name, kind in kinds.items():
        if not isinstance(fields[name], kind):
            raise DamagedCheckpointError(
                f"{path}: {name} is {fields[name]!r:.40}, wanted {kind.__name__}"
            )
    for name, shape in fields["params"].items():
        if not _is_shape(shape):
            raise DamagedCheckpointError(f"{path}: {name:.200} is {shape!r:.40}, wanted a shape")
    for name in ("metrics", "best"):
        if not _is_scores(fields[name]):
            raise DamagedCheckpointError(f"{path}: {name} is {fields[name]!r:.40}, wanted scores")
    return Meta(**{name: fields[name] for name in names})


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**31 for n in value)


def _is_scores(value: Any) -> bool:
    # A score that was not finite is null in JSON.
    if isinstance(value, dict):
        return "psnr_rgb" in value and all(
            type(v) in (int, float, type(None)) for v in value.values()
        )
    return value is None


def write_checksums(checkpoint: Path) -> None:
    """Writes size and CRC-32 of every file of a checkpoint beside them."""
    sums = {name: _measure(checkpoint / name) for name in _files(checkpoint)}
    path = checkpoint / CHECKSUMS
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(sums))
    os.replace(partial, path)


def verify(checkpoint: Path) -> None:
    """Compares every file with its checksum. A checkpoint without checksums passes.

    Raises:
        DamagedCheckpointError: names the first file that is missing, has another size or content.
    """
    path = checkpoint / CHECKSUMS
    if not path.exists():
        return
    sums = _read_json(path)
    try:
        wanted = {str(name): (int(size), int(crc)) for name, (size, crc) in sums.items()}
    except (ValueError, OverflowError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{path}: {error}") from error
    present = set(_files(checkpoint))
    for name, (size, crc) in sorted(wanted.items()):
        if name not in present:
            raise DamagedCheckpointError(f"{checkpoint / name}: missing")
        found_size, found_crc = _measure(checkpoint / name)
        if found_size != size:
            raise DamagedCheckpointError(
                f"{checkpoint / name}: found {found_size} bytes, wanted {size}"
            )
        if found_crc != crc:
            raise DamagedCheckpointError(
                f"{checkpoint / name}: found CRC-32 {found_crc:08x}, wanted {crc:08x}"
            )


def set_aside(checkpoint: Path) -> Path:
    """Moves a damaged checkpoint to `damaged/` beside the `checkpoints` directory.

    Returns:
        Where it is now. Nothing is deleted.
    """
    shelf = checkpoint.parent.parent / SET_ASIDE
    shelf.mkdir(exist_ok=True)
    target = shelf / checkpoint.name
    number = 1
    while target.exists():
        number += 1
        target = shelf / f"{checkpoint.name}.{number}"
    shutil.move(checkpoint, target)
    return target


def remove(half_written: Path) -> None:
    """Deletes what an interrupted save left; it never was a checkpoint."""
    shutil.rmtree(half_written, ignore_errors=True)


def locate(path: str | os.PathLike, prefer: str = "best") -> Path:
    """The checkpoint that a user means by `path`.

    Args:
        path: a workdir, its `checkpoints` directory, or one checkpoint in it.
        prefer: "best" (highest PSNR of those kept that were scored, else the latest) or "latest".

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if (path / "meta" / "metadata").exists():
        return path
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = find_steps(directory)
    if not steps:
        raise ValueError(
            f"no checkpoint found: looked for numbered directories in {directory.absolute()}"
        )
    if prefer == "latest":
        return directory / str(steps[-1])
    scores = {step: psnr for step in steps if (psnr := psnr_of(directory / str(step))) is not None}
    # Of equal scores the later one.
    return directory / str(max(scores, key=lambda s: (scores[s], s)) if scores else steps[-1])


def psnr_of(checkpoint: Path) -> float | None:
    """The PSNR (dB) that a checkpoint was scored with; None if unscored or unreadable."""
    try:
        metrics = read_meta(checkpoint).metrics
        return None if metrics is None else float(metrics["psnr_rgb"])
    except (ValueError, OverflowError, KeyError, TypeError):
        return None


def _read_json(path: Path) -> Any:
    """Raises DamagedCheckpointError for what cannot be read, also if it is made to be so."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise DamagedCheckpointError(f"{path}: found {size} bytes, wanted {MAX_JSON_BYTES}")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path}: {error}") from error


def _files(checkpoint: Path) -> list[str]:
    return sorted(
        str(path.relative_to(checkpoint))
        for path in checkpoint.rglob("*")
        if path.is_file() and path.name not in UNCHECKED
    )


def _measure(path: Path) -> tuple[int, int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
    return size, crc
