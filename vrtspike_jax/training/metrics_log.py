"""What a run leaves to read: metrics.jsonl and TensorBoard events."""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class MetricsLog:
    """Appends to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard`.

    Every line of metrics.jsonl is a JSON object with `step`. Lines of training have `loss`, lines
    of validation `eval_psnr_rgb` and others, events `event`. A value that is not finite is null.

    Args:
        workdir: where to write; None writes nothing (all hosts but the first).
        resume_step: lines beyond this step, left by a run that was killed, are removed.
        tensorboard: whether to write events.
    """

    def __init__(self, workdir: Path | None, resume_step: int, tensorboard: bool = True):
        self._file = self._writer = None
        if workdir is None:
            return
        path = workdir / "metrics.jsonl"
        truncate(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            # Events from the purged step on are hidden by TensorBoard, as the lines are here.
            purge = resume_step + 1 if resume_step else None
            self._writer = _EventFile(workdir / "tensorboard", purge)

    def write(self, step: int, values: Mapping[str, Any], group: str = "train") -> None:
        """One line, and a TensorBoard scalar for each number.

        Args:
            step: optimiser steps taken.
            values: name -> number, string or list.
            group: prefix of TensorBoard's tags.

        Raises:
            OSError: the disk is full; names the file.
        """
        if self._file is None:
            return
        values = {name: _plain(value) for name, value in values.items()}
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error
        if self._writer is not None:
            scalars = {
                f"{group}/{name}": value
                for name, value in values.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            self._writer.write(step, scalars)

    def close(self) -> None:
        """Flushes and closes both."""
        for opened in (self._file, self._writer):
            if opened is not None:
                # Each line was flushed as it was written; what fails now has been raised then.
                with contextlib.suppress(OSError):
                    opened.close()


class _EventFile:
    """TensorBoard events, written at once: tensorboardX's own writer hangs if the disk is full."""

    def __init__(self, folder: Path, purge_step: int | None):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._events = EventsWriter(str(folder / "events"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=purge_step, session_log=start))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars by tag.

        Raises:
            OSError: the disk is full.
        """
        try:
            for tag, value in scalars.items():
                self._events.write_event(
                    Event(wall_time=time.time(), step=step, summary=summary.scalar(tag, value))
                )
            self._events.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from error

    def close(self) -> None:
        """Flushes and closes the file."""
        self._events.close()


def truncate(path: Path, last_step: int) -> None:
    """Atomically removes lines of steps beyond `last_step`, and a line cut off by a kill."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and 0 <= _step_of(line) <= last_step]
    if kept != lines:
        partial = path.with_suffix(".tmp")
        partial.write_bytes(b"".join(kept))
        os.replace(partial, path)


def _step_of(line: bytes) -> int:
    try:
        return int(json.loads(line.decode())["step"])
    except (ValueError, OverflowError, KeyError, TypeError, RecursionError):
        return -1


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        # Seven digits hold a float32; NaN and infinity are not JSON.
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
