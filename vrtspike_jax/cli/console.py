"""What commands share when they talk: progress bars, JSON results, compiled programs kept."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer


def check_writable(path: Path | None, what: str) -> None:
    """Raises ValueError if a result file could not be written later on ("-" is stdout)."""
    if path is not None and str(path) != "-":
        if path.is_dir():
            raise ValueError(f"{what} {path}: is a folder, wanted a file")
        if not path.absolute().parent.is_dir():
            raise ValueError(f"{what} {path}: its folder does not exist")
        if not os.access(path.absolute().parent, os.W_OK):
            raise ValueError(f"{what} {path}: its folder cannot be written")


def write_json(path: Path | None, value: Any) -> None:
    """Writes a result to a file, or to standard output for "-"."""
    text = json.dumps(value, indent=2) + "\n"
    if path is None:
        return
    if str(path) == "-":
        sys.stdout.write(text)
        return
    from vrtspike_jax.restoration.sinks import write_atomically

    write_atomically(path, text.encode())


def say(message: str) -> None:
    """A line of information, on standard error so that standard output stays for results."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress_bar(
    label: str, unit: str = "frames", ticks: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; yields a function (finished, total).

    If nothing gets finished, the bar vanishes, so that an error stays a line by itself. It draws
    itself again in a thread, unless `ticks` is off: beside the import of TFDS, which replaces
    Python's own `__import__` for a while, that thread fails.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=ticks)
    task = bar.add_task(label, total=None)

    bar.start()
    try:
        yield lambda finished, total: bar.update(
            task, completed=finished, total=total, refresh=not ticks
        )
    finally:
        if bar.tasks[0].completed:
            bar.stop()
        else:
            bar.live.transient = True
            bar.live.stop()


def count_of(number: int, thing: str) -> str:
    """1 -> "1 frame", 2 -> "2 frames"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def parse_size(text: str) -> tuple[int, int]:
    """'720x1280' -> (720, 1280), '256' -> (256, 256)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"size {text!r}: wanted HEIGHTxWIDTH or one number")
    return int(parts[0]), int(parts[-1])


CHECKPOINT = typer.Option(
    envvar="VRTSPIKE_CHECKPOINT",
    help="Workdir, its checkpoints folder, one checkpoint, a file of weights, or 'small'.",
)
