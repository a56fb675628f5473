"""`vrtspike simulate`: a blurred, sharp and spike data set from videos."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from vrtspike_jax.cli import console
from vrtspike_jax.cli.errors import reports_errors

EXAMPLES = """Examples:

vrtspike simulate --video fast_camera.mp4 --out data/own --split train

vrtspike simulate --video phone_clips/ --interpolate 4 --exposure 11 --seed 1 --out data/own

vrtspike simulate --video frames_240fps/ --threshold 2 --noise 0.02 --out data/noisy
"""


@reports_errors
def command(
    video: Annotated[
        Path, typer.Option(help="A video, a folder of images, or a folder of videos.")
    ],
    out: Annotated[Path, typer.Option(help="Root of the data set; sequences are added to it.")],
    split: Annotated[str, typer.Option(help="Part of the data set.")] = "test",
    name: Annotated[str, typer.Option(help="Sequence's name (else the video's).")] = "",
    interpolate: Annotated[
        int, typer.Option(help="Make so many frames of each, by optical flow, before all else.")
    ] = 1,
    exposure: Annotated[int, typer.Option(help="Frames in a blurred one, odd.")] = 11,
    gap: Annotated[int, typer.Option(help="Frames between exposures.")] = 0,
    substeps: Annotated[int, typer.Option(help="Spike steps from frame to frame.")] = 8,
    shrink: Annotated[
        float, typer.Option(help="Divide the sides by this, until motion is about a pixel.")
    ] = 1.0,
    spike_scale: Annotated[float, typer.Option(help="Spike pixels per frame pixel.")] = 0.5,
    threshold: Annotated[float, typer.Option(help="Firing threshold, white x steps.")] = 1.0,
    noise: Annotated[float, typer.Option(help="Noise on each step's light, of white.")] = 0.0,
    dark_current: Annotated[float, typer.Option(help="Light of a dark pixel, of white.")] = 0.0,
    threshold_spread: Annotated[
        float, typer.Option(help="Relative spread of the pixels' thresholds.")
    ] = 0.0,
    frame_noise: Annotated[float, typer.Option(help="Noise on blurred frames, of white.")] = 0.0,
    max_frames: Annotated[int, typer.Option(help="Blurred frames a sequence; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of start phases and noise.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write what was made here; - for stdout.")
    ] = None,
) -> None:
    """Make blurred frames, their ground truth and the spikes from high-frame-rate video.

    Written as OUT/SPLIT/SEQUENCE/{blur,sharp,spike}, the layout that training reads.
    """
    from vrtspike_jax.scenes.from_video import SimulateOptions, simulate_sequence

    console.check_writable(json_file, "--json")
    options = SimulateOptions(
        interpolate=interpolate,
        exposure=exposure,
        gap=gap,
        substeps=substeps,
        shrink=shrink,
        spike_scale=spike_scale,
        threshold=threshold,
        dark_current=dark_current,
        noise_std=noise,
        threshold_std=threshold_spread,
        frame_noise=frame_noise,
        seed=seed,
        max_frames=max_frames,
    )
    for value in (split, name):
        if value and (Path(value).is_absolute() or ".." in Path(value).parts):
            raise ValueError(f"found name {value!r}, wanted one inside {out}")
    made = []
    for number, path in enumerate(_sources(video, name)):
        target = out / split / (name or path.stem)
        # Sequences differ in their noise, whichever of them are made.
        source = _open(path)
        try:
            with console.progress_bar(target.name) as progress:
                chosen = dataclasses.replace(options, seed=seed + number)
                made.append(simulate_sequence(source, target, chosen, progress))
        finally:
            source.close()
        last = made[-1]
        console.say(
            f"{last.folder}: {last.frames} frames of {last.size[0]} x {last.size[1]}, "
            f"{last.steps} spike steps of {last.spike_size[0]} x {last.spike_size[1]} each, "
            f"firing rate {last.firing_rate:.3f}"
        )
    console.write_json(json_file, [dataclasses.asdict(entry) for entry in made])


def _open(path: Path):
    from vrtspike_jax.cli.deblur import open_frames

    return open_frames(path)


def _sources(path: Path, name: str) -> list[Path]:
    from vrtspike_jax.restoration.frames import natural_key
    from vrtspike_jax.restoration.video import VIDEO_SUFFIXES

    if not path.exists():
        raise ValueError(f"{path}: no such video or folder")
    if not path.is_dir():
        return [path]
    videos = [p for p in path.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES]
    if videos and name:
        raise ValueError(f"{path}: holds {len(videos)} videos; --name is for one sequence")
    stems = [p.stem for p in videos]
    if len(set(stems)) < len(stems):
        raise ValueError(f"{path}: two videos have the same name but for their ending")
    return sorted(videos, key=natural_key) or [path]
