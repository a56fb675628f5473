"""`vrtspike deblur`: blurred frames and spikes in, sharp frames out."""

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vrtspike_jax.cli import console
from vrtspike_jax.cli.errors import reports_errors

EXAMPLES = """Examples:

vrtspike deblur --blur seq/blur --spikes seq/spike --out restored

vrtspike deblur --blur clip.mp4 --spikes clip.dat --spikes-per-frame 88 --spike-size 360x640
--out sharp.mp4 --checkpoint runs/baseline

vrtspike deblur --blur seq/blur --spikes seq.dat --alignment align.csv --steps-per-second 20000
--out restored --checkpoint runs/baseline --tile 512 --tile-overlap 64

A folder that was left half done is finished by the same command. Nothing is ever overwritten.
"""


class Format(StrEnum):
    """Files in an output folder."""

    png = "png"
    jpg = "jpg"


@reports_errors
def command(
    blur: Annotated[Path, typer.Option(help="Folder of PNG or JPEG files, or a video.")],
    out: Annotated[Path, typer.Option(help="Folder to make, or a video file (.mp4).")],
    spikes: Annotated[
        Path | None,
        typer.Option(help="Folder with one .dat a frame, or one .dat (not for a plain VRT)."),
    ] = None,
    checkpoint: Annotated[Path | None, console.CHECKPOINT] = None,
    spike_size: Annotated[
        str, typer.Option(help="HxW of the spikes; else config.yaml, else as in training.")
    ] = "",
    head_columns: Annotated[int, typer.Option(help="Extra bits after each stored row.")] = 0,
    spikes_per_frame: Annotated[
        int, typer.Option(help="Steps of each exposure, for one long .dat without gaps.")
    ] = 0,
    spike_start: Annotated[int, typer.Option(help="Step where the first exposure begins.")] = 0,
    alignment: Annotated[
        Path | None, typer.Option(help="CSV log frame_idx,t0,t1,event_count,seq, for one .dat.")
    ] = None,
    steps_per_second: Annotated[float, typer.Option(help="Spike rate, with --alignment.")] = 1000.0,
    sequence: Annotated[str, typer.Option(help="Sequence's name in the log.")] = "",
    frames: Annotated[int | None, typer.Option(help="Only the first N frames.")] = None,
    tile: Annotated[int | None, typer.Option(help="Side of tiles (else what fits).")] = None,
    tile_overlap: Annotated[int | None, typer.Option(help="Pixels that tiles share.")] = None,
    no_tile: Annotated[bool, typer.Option("--no-tile", help="Whole frames.")] = False,
    clip: Annotated[int | None, typer.Option(help="Frames in a clip (else as trained).")] = None,
    clip_overlap: Annotated[int | None, typer.Option(help="Frames that clips share.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="Files in a folder.")] = Format.png,
    bit_depth: Annotated[int, typer.Option(help="8 or 16 (else as the input).")] = 0,
    fps: Annotated[float, typer.Option(help="Rate of a video (else the input's, or 25).")] = 0.0,
    crf: Annotated[int, typer.Option(min=0, max=51, help="Video quality, 0 lossless.")] = 12,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write a summary here; - for stdout.")
    ] = None,
) -> None:
    """Restore sharp frames from blurred ones and the spikes fired during their exposures.

    Any number of frames of any size, in memory that does not grow with their number.
    """
    from vrtspike_jax.restoration import deblur

    console.check_writable(json_file, "--json")
    if no_tile and tile is not None:
        raise ValueError("--no-tile and --tile exclude each other")
    if bit_depth not in (0, 8, 16):
        raise ValueError(f"--bit-depth {bit_depth}: wanted 8 or 16")
    if not 0 <= fps < float("inf"):
        raise ValueError(f"--fps {fps}: wanted frames a second")
    cutting = _cutting(
        spikes_per_frame, spike_start, alignment, steps_per_second, sequence, frames is not None
    )
    source = open_frames(blur)
    try:
        restorer, scale = _load(checkpoint)
        if spikes is None and restorer.voxels.bins:
            raise ValueError(f"--spikes is missing: {restorer.name} needs them")
        exposures = _open_exposures(
            source, spikes, frames, spike_size, head_columns, cutting, scale
        )
        with console.progress_bar("restoring") as progress:
            summary = deblur.run(
                restorer,
                source,
                exposures,
                deblur.Output(out, f".{format_.value}", bit_depth, fps, crf),
                deblur.Tiling(deblur.WHOLE if no_tile else tile, tile_overlap, clip, clip_overlap),
                count=frames,
                progress=progress,
                notify=console.say,
            )
    finally:
        source.close()
    console.say(
        f"{summary.frames} frames in {out}"
        + (f" ({summary.skipped} were there)" if summary.skipped else "")
        + f": {summary.seconds:.1f} s, {summary.frames_per_second:.2f} frames/s, after "
        f"{summary.compile_seconds:.1f} s to load and compile"
    )
    console.write_json(json_file, {"out": str(out), **dataclasses.asdict(summary)})


def open_frames(path: Path):
    """A folder of images, or a video."""
    from vrtspike_jax.restoration.frames import FolderFrames
    from vrtspike_jax.restoration.video import VideoFrames

    if not path.exists():
        raise ValueError(f"{path}: no such folder or video")
    return FolderFrames(path) if path.is_dir() else VideoFrames(path)


def _cutting(steps: int, start: int, log: Path | None, rate: float, sequence: str, partial: bool):
    from vrtspike_jax.restoration.exposures import Cutting

    if steps and log is not None:
        raise ValueError("--spikes-per-frame and --alignment exclude each other")
    return Cutting(steps, start, log, rate, sequence, partial)


def _load(checkpoint: Path | None):
    """The restorer and the ratio of spike pixels to frame pixels that it was trained with."""
    from vrtspike_jax import compiler
    from vrtspike_jax.restoration.restorer import load_with_config

    compiler.keep_compiled_programs()
    restorer, config = load_with_config(checkpoint)
    return restorer, tuple(config.data.spike_scale)


def _open_exposures(source, spikes, frames, size: str, head_columns: int, cutting, scale):
    from vrtspike_jax.data.geometry import spike_size
    from vrtspike_jax.restoration.exposures import NoExposures, open_exposures

    if spikes is None:
        return NoExposures(len(source))
    return open_exposures(
        spikes,
        source.names[:frames],
        source.path,
        console.parse_size(size) if size else None,
        head_columns,
        cutting,
        fallback=spike_size(*source.size, scale),
    )
