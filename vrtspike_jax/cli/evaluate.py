"""`vrtspike evaluate`: scores of a data set, beside the blurred input and plain reconstructions."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vrtspike_jax.cli import console
from vrtspike_jax.cli.errors import reports_errors

EXAMPLES = """Examples:

vrtspike evaluate --data data/gopro_spike --split test --checkpoint runs/baseline --out scores

vrtspike evaluate --data data/set --out scores    (blurred, TFP and TFI alone)

vrtspike evaluate --data data/set --checkpoint runs/baseline --out scores --json - | jq .mean

Afterwards: vrtspike report scores --out report.html
"""


class Layout(StrEnum):
    """How the files of a data set are laid out."""

    auto = "auto"
    plain = "plain"
    gopro = "gopro"
    x4k = "x4k"


@reports_errors
def command(
    data: Annotated[Path, typer.Option(help="Folder of the data set, or of a prepared one.")],
    out: Annotated[Path, typer.Option(help="Folder to make: metrics.json, frames.csv, pictures.")],
    split: Annotated[str, typer.Option(help="Part of the data set.")] = "test",
    checkpoint: Annotated[Path | None, console.CHECKPOINT] = None,
    layout: Annotated[Layout, typer.Option(help="Layout of the files.")] = Layout.auto,
    spikes_per_frame: Annotated[
        int | None, typer.Option(help="Steps of each exposure, for one long .dat a sequence.")
    ] = None,
    alignment: Annotated[
        str | None, typer.Option(help="Alignment log, relative to the data set's folder.")
    ] = None,
    steps_per_second: Annotated[
        float | None, typer.Option(help="Spike rate, with --alignment.")
    ] = None,
    spike_scale: Annotated[
        float | None, typer.Option(help="Spike pixels per frame pixel (else as in training).")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Side of tiles (else what fits).")] = None,
    tile_overlap: Annotated[int | None, typer.Option(help="Pixels that tiles share.")] = None,
    no_tile: Annotated[bool, typer.Option("--no-tile", help="Whole frames.")] = False,
    clip: Annotated[int | None, typer.Option(help="Frames in a clip (else as trained).")] = None,
    clip_overlap: Annotated[int | None, typer.Option(help="Frames that clips share.")] = None,
    pictures: Annotated[
        int, typer.Option(min=0, help="Frames of each sequence to write pictures of.")
    ] = 1,
    lpips: Annotated[
        Path | None, typer.Option(help="LPIPS layer weights (.safetensors, .npz), with --vgg16.")
    ] = None,
    vgg16: Annotated[
        Path | None, typer.Option(help="VGG16 weights (.safetensors, .npz), with --lpips.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write metrics.json here; - for stdout.")
    ] = None,
) -> None:
    """Score restored, blurred, TFP and TFI frames against the sharp ones.

    PSNR and SSIM of RGB and Y for every frame, rounded to 8 bit as benchmarks do and in float.
    """
    console.check_writable(json_file, "--json")
    if no_tile and tile is not None:
        raise ValueError("--no-tile and --tile exclude each other")
    if (lpips is None) != (vgg16 is None):
        raise ValueError("--lpips and --vgg16 belong together: wanted both or neither")
    for name, path in (("--lpips", lpips), ("--vgg16", vgg16)):
        if path is not None and not path.is_file():
            raise ValueError(f"{name} {path}: no such file; docs/scoring.md says how to make it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: holds files already; nothing is overwritten")
    from vrtspike_jax.restoration.restorer import WHOLE

    restorer, config = _load(checkpoint)
    options = {"steps": spikes_per_frame, "alignment_log": alignment}
    options["steps_per_second"] = steps_per_second
    options["spike_scale"] = None if spike_scale is None else (spike_scale, spike_scale)
    store = _open(data, split, layout, config, options)
    tiling = {"tile": WHOLE if no_tile else tile, "tile_overlap": tile_overlap}
    tiling |= {"clip": clip, "clip_overlap": clip_overlap}
    if restorer is None:
        console.say(
            "no --checkpoint: scoring the blurred frames, TFP and TFI alone "
            "('--checkpoint small' also scores the model of this package)"
        )
    report, meta = _score(store, restorer, out, tiling, pictures, lpips, vgg16)
    meta |= {"data": str(data.absolute()), "split": split}
    _write(out, {**meta, **report.to_json()}, report.to_csv(), json_file)
    _print_table(report, out, to_stdout=str(json_file) != "-")


def _load(checkpoint: Path | None):
    from vrtspike_jax.data.config import default_data_config

    if checkpoint is None:
        return None, default_data_config()
    from vrtspike_jax import compiler
    from vrtspike_jax.restoration.restorer import load_with_config

    compiler.keep_compiled_programs()
    restorer, config = load_with_config(checkpoint)
    return restorer, config.data


def _open(data: Path, split: str, layout: Layout, config, options: dict[str, Any]):
    """The frames of a split: what training said about voxels and spikes, this folder's files."""
    import ml_collections

    from vrtspike_jax.cli.layouts import guess_layout
    from vrtspike_jax.data.config import default_data_config
    from vrtspike_jax.data.pipeline import open_frames

    if not data.is_dir():
        raise ValueError(f"{data}: no such folder of a data set")
    values = ml_collections.ConfigDict(default_data_config())
    values.spike_scale = tuple(config.spike_scale)
    prepared = layout is Layout.auto and (data / "dataset_info.json").is_file()
    values.update({"root": str(data), "source": "tfds" if prepared else "plain"})
    values.layout = guess_layout(data, split) if layout is Layout.auto else layout.value
    values.update({"clip_length": 1, "crop_size": 0})
    values.update({key: value for key, value in options.items() if value is not None})
    return open_frames(values, split)


def _score(store, restorer, out: Path, tiling, pictures: int, lpips, vgg16):
    from vrtspike_jax import hardware
    from vrtspike_jax.restoration.scoring import score_split

    measure = None
    if lpips is not None:
        from vrtspike_jax.lpips import Lpips

        measure = Lpips(vgg16, lpips)
    missing = _make(out)
    try:
        with console.progress_bar("scoring") as progress:
            report = score_split(store, restorer, out, tiling, pictures, measure, progress=progress)
    except BaseException:
        _remove(out, missing)
        raise
    meta = {
        "checkpoint": restorer.name if restorer else None,
        "versions": hardware.versions(),
        "tiling": tiling,
    }
    return report, meta


def _make(out: Path) -> list[Path]:
    """Makes the folder; which ones were not there before, the innermost first."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out}: cannot be made: {error.strerror}") from None
    return missing


def _remove(out: Path, missing: list[Path]) -> None:
    """Scores of half a split are worth nothing: all is left as it was found."""
    import shutil

    shutil.rmtree(out / "pictures", ignore_errors=True)
    for folder in missing:
        if any(folder.iterdir()):
            return
        folder.rmdir()


def _write(out: Path, values: dict[str, Any], table: str, json_file: Path | None) -> None:
    from vrtspike_jax.restoration.sinks import write_atomically

    write_atomically(out / "frames.csv", table.encode())
    write_atomically(out / "metrics.json", (json.dumps(values, indent=1) + "\n").encode())
    console.write_json(json_file, values)


def _print_table(report, out: Path, to_stdout: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from vrtspike_jax.evaluation import METHODS

    metrics = [m for m in next(iter(report.mean().values())) if not m.endswith("_float")]
    frames = console.count_of(len(report.frames), "frame")
    title = f"{frames}, {console.count_of(len(report.sequences()), 'sequence')}"
    table = Table("frames", *metrics, title=title)
    for method, scores in report.mean().items():
        values = [f"{scores[m]:.2f}" if "psnr" in m else f"{scores[m]:.4f}" for m in metrics]
        table.add_row(METHODS[method], *values)
    Console(stderr=not to_stdout).print(table)
    console.say(f"written to {out / 'metrics.json'} and {out / 'frames.csv'}")
