"""`vrtspike prepare`: a published download, checked and packed for fast random access."""

import dataclasses
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vrtspike_jax.cli import console
from vrtspike_jax.cli.errors import reports_errors

EXAMPLES = """Examples:

vrtspike prepare gopro downloads/GoPro --data-dir data

vrtspike prepare x4k downloads/X4K --data-dir data --steps 33

vrtspike prepare svrt data/own --data-dir data --spikes-per-frame 88

A run that was stopped goes on where it was when the same command is given again. Train on the
result with --config.data.source=tfds --config.data.root=(the folder it prints).
"""


class Kind(StrEnum):
    """Which published layout the files have."""

    gopro = "gopro"
    x4k = "x4k"
    svrt = "svrt"


@reports_errors
def command(
    kind: Annotated[Kind, typer.Argument(help="Layout: gopro, x4k, or svrt (the plain one).")],
    root: Annotated[Path, typer.Argument(help="Folder of the published files.")],
    data_dir: Annotated[Path, typer.Option(help="Where prepared sets are kept.")] = Path("data"),
    split: Annotated[
        list[str] | None, typer.Option(help="Only this part; repeatable (else all).")
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", "--spikes-per-frame", help="Steps of an exposure.")
    ] = 0,
    blur_folder: Annotated[str, typer.Option(help="Blurred frames: blur or blur_gamma.")] = "blur",
    spike_scale: Annotated[float, typer.Option(help="Spike pixels per frame pixel.")] = 0.5,
    alignment: Annotated[str, typer.Option(help="Alignment log, relative to ROOT.")] = "",
    steps_per_second: Annotated[float, typer.Option(help="Spike rate, with --alignment.")] = 1000.0,
    head_columns: Annotated[int, typer.Option(help="Extra bits after each stored row.")] = 0,
    tile: Annotated[
        int | None, typer.Option(help="Side of image tiles; 0 keeps the files as they are.")
    ] = None,
    bins: Annotated[int, typer.Option(help="Time bins the voxel statistics are for.")] = 32,
    threads: Annotated[int, typer.Option(help="Frames encoded at a time; 0: one a core.")] = 0,
    allow_links: Annotated[
        bool, typer.Option("--allow-links", help="Follow links that lead out of ROOT.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report here; - for stdout.")
    ] = None,
) -> None:
    """Verify a published data set and pack it into a TFDS set, resumably.

    Sequences with a fault are left out and counted, with the reason of each.
    """
    console.check_writable(json_file, "--json")
    from vrtspike_jax.data.prepare import PrepareOptions, prepare

    options = PrepareOptions(
        splits=tuple(split or ()),
        bins=bins,
        threads=threads,
        steps=steps,
        blur_folder=blur_folder,
        spike_scale=(spike_scale, spike_scale),
        alignment_log=alignment,
        steps_per_second=steps_per_second,
        head_columns=head_columns,
        allow_links=allow_links,
    )
    if tile is not None:
        options = dataclasses.replace(options, tile=tile)
    with console.progress_bar(kind.value, ticks=False) as progress:
        report = prepare(
            kind.value, root, data_dir, options, lambda done, total, name: progress(done, total)
        )
    _say(report)
    console.write_json(json_file, _plain(report))


def _say(report) -> None:
    for name, count in report.sequences.items():
        frames = console.count_of(report.frames[name], "frame")
        console.say(f"{name}: {console.count_of(count, 'sequence')}, {frames}")
    left_out = Counter(name for name, _, _ in report.skipped)
    for name, count in left_out.items():
        console.say(f"{name}: {console.count_of(count, 'sequence')} left out:")
        for split, sequence, reason in report.skipped:
            if split == name:
                console.say(f"  {sequence}: {reason}")
    voxel = report.voxel
    console.say(
        f"voxels of {voxel['bins']} bins: config.data.voxel.mean={voxel['mean']:.6g}, "
        f"config.data.voxel.std={voxel['std']:.6g}"
    )
    console.say(f"in {report.folder}: config.data.source=tfds, config.data.root={report.folder}")


def _plain(report) -> dict[str, Any]:
    values = dataclasses.asdict(report) | {"folder": str(report.folder)}
    values["skipped"] = [
        {"split": split, "sequence": sequence, "reason": reason}
        for split, sequence, reason in report.skipped
    ]
    return values
