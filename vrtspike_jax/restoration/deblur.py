"""The job behind `vrtspike deblur`: frames and spikes in, a folder or a video out, streamed."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vrtspike_jax import hardware
from vrtspike_jax.restoration.exposures import Exposures, NoExposures
from vrtspike_jax.restoration.frames import FolderFrames
from vrtspike_jax.restoration.restorer import WHOLE, Plan, Restorer, from_unit
from vrtspike_jax.restoration.sinks import FolderSink, background
from vrtspike_jax.restoration.video import VIDEO_SUFFIXES, WRITABLE, VideoFrames, video_writer


@dataclasses.dataclass(frozen=True)
class Tiling:
    """What the user asked for; None: chosen. `tile` may be "whole"."""

    tile: int | tuple[int, int] | str | None = None
    tile_overlap: int | None = None
    clip: int | None = None
    clip_overlap: int | None = None


@dataclasses.dataclass(frozen=True)
class Output:
    """Where and how to write.

    Attributes:
      path: a folder, or a video file by its ending.
      suffix: ".png" or ".jpg", for a folder.
      bits: 8 or 16 a channel; 0: as the input.
      fps: frames a second of a video; 0: as the input, or 25.
      crf: H.264 quality, 0 (lossless) to 51.
    """

    path: Path
    suffix: str = ".png"
    bits: int = 0
    fps: float = 0.0
    crf: int = 12

    @property
    def is_video(self) -> bool:
        """Whether `path` is a video file."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did. Seconds are wall time; `model` is `restore` less its set-up."""

    frames: int
    skipped: int
    seconds: float
    compile_seconds: float
    frames_per_second: float
    tile: tuple[int, int]
    tiles: int
    clip_length: int
    clip_overlap: int
    devices: int
    bytes_needed: int


Progress = Callable[[int, int], None]


def run(
    restorer: Restorer,
    frames: FolderFrames | VideoFrames,
    exposures: Exposures | NoExposures,
    output: Output,
    tiling: Tiling = Tiling(),
    count: int | None = None,
    progress: Progress = lambda finished, total: None,
    notify: Callable[[str], None] = lambda message: None,
) -> Summary:
    """Restores the first `count` frames (default all) and writes them.

    Inputs are checked and the tile is chosen before anything is written.

    Raises:
      ValueError: bad input, output that exists, or settings that do not fit; a folder keeps the
        frames that are finished, a video that is not finished is removed.
    """
    started = time.perf_counter()
    count = len(frames) if count is None else count
    if not 1 <= count <= len(frames):
        raise ValueError(f"{frames.path}: holds {len(frames)} frames, asked for {count}")

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        return frames.read(index), restorer.count(exposures.read(index), frames.size)

    writer = _to_video if output.is_video else _to_folder
    with writer(restorer, frames, exposures, output, tiling, count) as (plan, sink):
        planned = time.perf_counter()
        notify(describe(plan, exposures))
        skipped = sum(sink.done(index) for index in range(count))
        progress(skipped, count)
        finished = skipped
        with background(sink.write, sink.workers, 2 * plan.clip_length) as write:
            stream = restorer.stream(plan, count, read, sink.done, frames.readers)
            for index, frame in stream:
                write(index, frame)
                finished += 1
                progress(finished, count)
        seconds = time.perf_counter() - planned
        summary = Summary(
            frames=count,
            skipped=skipped,
            seconds=seconds,
            compile_seconds=planned - started,
            frames_per_second=(count - skipped) / max(seconds, 1e-9),
            tile=(plan.grid.rows.tile, plan.grid.cols.tile),
            tiles=len(plan.grid.tiles),
            clip_length=plan.clip_length,
            clip_overlap=plan.clip_overlap,
            devices=len(restorer.devices),
            bytes_needed=plan.bytes_needed,
        )
        sink.finish(summary)
    return summary


@dataclasses.dataclass(frozen=True)
class _Sink:
    """What `run` needs of an output."""

    write: Callable[[int, np.ndarray], None]
    done: Callable[[int], bool]
    finish: Callable[[Summary], None]
    workers: int


def _plan(restorer: Restorer, frames, exposures: Exposures, tiling: Tiling) -> Plan:
    return restorer.plan(
        frames.size,
        exposures.size,
        frames.dtype,
        steps=exposures.steps,
        tile=tiling.tile,
        tile_overlap=tiling.tile_overlap,
        clip=tiling.clip,
        clip_overlap=tiling.clip_overlap,
    )


@contextlib.contextmanager
def _to_folder(restorer, frames, exposures, output: Output, tiling: Tiling, count: int):
    first = exposures.files[0][0] if exposures.files else None
    record: dict[str, Any] = {
        "blur": str(frames.path.absolute()),
        "spikes": str(first.path.absolute()) if first else None,
        "spike_size": list(exposures.size),
        "checkpoint": restorer.name,
        "frames": count,
        "tiling": dataclasses.asdict(tiling),
        "suffix": output.suffix,
        "bits": output.bits or 8 * frames.dtype.itemsize,
    }
    sink = FolderSink(output.path, frames.names[:count], record, output.suffix, record["bits"])
    begun = FolderSink.read_record(output.path)
    # A tile that was chosen for the memory of then has to stay, or a seam would show.
    chosen = _again(begun["chosen"]) if begun else tiling
    plan = _plan(restorer, frames, exposures, chosen)
    extra = {
        "chosen": _chosen(plan),
        "windows": [[dat.path.name, *window] for dat, *window in exposures.files[:count]],
        "head_columns": first.head_columns if first else 0,
        "names": frames.names[:count],
        "voxel_bins": restorer.voxels.bins,
        "versions": hardware.versions(),
    }
    sink.begin(extra)

    def finish(summary: Summary) -> None:
        sink.finish(extra | {"summary": dataclasses.asdict(summary)})

    try:
        yield plan, _Sink(sink.write, sink.done, finish, workers=4)
    except BaseException:
        sink.abandon()
        raise


def _chosen(plan: Plan) -> dict[str, Any]:
    rows, cols = plan.grid.rows, plan.grid.cols
    overlaps = [axis.overlap for axis in (rows, cols) if axis.overlap is not None]
    return {
        "tile": [rows.tile, cols.tile] if overlaps else WHOLE,
        "tile_overlap": min(overlaps, default=None),
        "clip": plan.clip_length,
        "clip_overlap": plan.clip_overlap,
    }


def _again(chosen: dict[str, Any]) -> Tiling:
    tile = chosen["tile"]
    return Tiling(**chosen | {"tile": tile if isinstance(tile, str) else tuple(tile)})


@contextlib.contextmanager
def _to_video(restorer, frames, exposures, output: Output, tiling: Tiling, count: int):
    if output.path.exists():
        raise ValueError(f"{output.path}: exists already; nothing is overwritten")
    if output.path.suffix.lower() not in WRITABLE:
        raise ValueError(f"{output.path}: wanted a video that ends in {', '.join(WRITABLE)}")
    if output.bits == 16:
        raise ValueError(f"{output.path}: a video holds 8 bits a channel, asked for 16")
    if not output.path.absolute().parent.is_dir():
        raise ValueError(f"{output.path}: its folder does not exist")
    plan = _plan(restorer, frames, exposures, tiling)
    fps = output.fps or frames.fps or 25.0
    with video_writer(output.path, frames.size, fps, output.crf) as write:
        yield (
            plan,
            _Sink(
                write=lambda _, frame: write(from_unit(frame, np.uint8)),
                done=lambda _: False,
                finish=lambda _: None,
                workers=1,
            ),
        )


def describe(plan: Plan, exposures: Exposures) -> str:
    """One line: what is fed to the model."""
    rows, cols = plan.grid.rows, plan.grid.cols
    tiles = (
        "whole frames"
        if len(plan.grid.tiles) == 1
        else (f"{len(plan.grid.tiles)} tiles of {rows.tile} x {cols.tile}")
    )
    fewest, most = exposures.steps
    steps = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    height, width = exposures.size
    spikes = f"spikes {height} x {width}, {steps} steps a frame" if most else "no spikes"
    return (
        f"frames {rows.size} x {cols.size}, {tiles}; clips of {plan.clip_length} frames that share "
        f"{plan.clip_overlap}; {spikes}; {plan.bytes_needed / 2**20:,.0f} MiB a call"
    )
