"""`vrtspike inspect`: what a recording, a data set, a checkpoint or a file of weights holds."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vrtspike_jax.cli import console
from vrtspike_jax.cli.errors import reports_errors

EXAMPLES = """Examples:

vrtspike inspect recording.dat                (guesses the size, says how sure)

vrtspike inspect recording.dat --spike-size 250x400 --out look --steps-per-second 20000

vrtspike inspect data/gopro_spike             (sequences, sizes, faults)

vrtspike inspect runs/baseline --json -       (config, versions, scores)

vrtspike inspect small                        (the model of this package)
"""


class Animation(StrEnum):
    """Moving pictures of a recording."""

    gif = "gif"
    mp4 = "mp4"


@reports_errors
def command(
    path: Annotated[
        Path, typer.Argument(help="A .dat, a data set, a workdir, a checkpoint or weights.")
    ],
    spike_size: Annotated[
        str, typer.Option(help="HxW of a .dat; else config.yaml, else guessed from the bits.")
    ] = "",
    head_columns: Annotated[int, typer.Option(help="Extra bits after each stored row.")] = 0,
    steps_per_second: Annotated[float, typer.Option(help="Spike rate, for the duration.")] = 0.0,
    start: Annotated[int, typer.Option(min=0, help="First step to look at.")] = 0,
    count: Annotated[int | None, typer.Option(min=1, help="Steps to look at (else all).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make for TFP, TFI, rates and an animation.")
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="Steps of a TFP picture.")] = 32,
    animation: Annotated[Animation, typer.Option(help="Moving pictures.")] = Animation.gif,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write what was found here; - for stdout.")
    ] = None,
) -> None:
    """Show size, duration, firing rate, pixels at fault and pictures of a recording.

    Of a data set: sequences, sizes and faults. Of a checkpoint: config, versions and scores. Of
    weights (.safetensors, or "small", those of this package): config and size.
    """
    console.check_writable(json_file, "--json")
    if _is_weights(path):
        found = _inspect_weights(path)
    elif not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    elif path.is_file():
        if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out}: holds files already; nothing is overwritten")
        found = _inspect_dat(path, spike_size, head_columns, steps_per_second, start, count)
        recording, statistics = found.pop("_recording"), found.pop("_statistics")
        if out is not None:
            found["pictures"] = _write_pictures(
                out, recording, statistics, start, window, animation
            )
    elif _is_checkpoint(path):
        found = _inspect_checkpoint(path)
    else:
        found = _inspect_data_set(path)
    if str(json_file) != "-":
        _print(found)
    console.write_json(json_file, found)


def _inspect_dat(
    path: Path, size: str, head_columns: int, rate: float, start: int, count: int | None
) -> dict[str, Any]:
    from vrtspike_jax.spikes import find_camera_config, plausible_sizes
    from vrtspike_jax.spikes.dat import DatFile
    from vrtspike_jax.spikes.statistics import measure

    guesses = plausible_sizes(path)
    camera = None if size else find_camera_config(path)
    if size:
        shape, source = (*console.parse_size(size), head_columns), "--spike-size"
    elif camera is not None:
        shape = (camera.height, camera.width, head_columns or camera.head_columns)
        source = "config.yaml"
    elif guesses:
        best = guesses[0]
        shape, source = (best.height, best.width, best.head_columns), "guessed from the bits"
    else:
        raise ValueError(f"{path}: {path.stat().st_size} bytes fit no sensible size")
    recording = DatFile(path, *shape)
    found = measure(recording, start, count)
    return {
        "kind": "recording",
        "path": str(path),
        "height": shape[0],
        "width": shape[1],
        "head_columns": shape[2],
        "size_from": source,
        "steps": recording.num_frames,
        "seconds": recording.num_frames / rate if rate else None,
        "looked_at": [start, start + found.steps],
        "firing_rate": found.firing_rate,
        "rate_quietest_step": float(found.rate_by_step.min()),
        "rate_busiest_step": float(found.rate_by_step.max()),
        "silent_pixels": found.silent,
        "dead_pixels": len(found.dead),
        "hot_pixels": len(found.hot),
        "dead": found.dead[:100],
        "hot": found.hot[:100],
        "plausible_sizes": [
            {
                "height": guess.height,
                "width": guess.width,
                "head_columns": guess.head_columns,
                "steps": guess.num_frames,
                "score": round(guess.score, 4),
                "known": guess.known,
            }
            for guess in guesses
        ],
        "_recording": recording,
        "_statistics": found,
    }


def _write_pictures(
    out: Path, recording, statistics, start: int, window: int, animation: Animation
) -> dict[str, str]:
    import cv2
    import numpy as np

    from vrtspike_jax.restoration.sinks import write_atomically
    from vrtspike_jax.spikes import tfi, tfp
    from vrtspike_jax.spikes.statistics import moving_pictures, to_picture

    steps = statistics.steps
    around = min(steps, 512)
    first = start + (steps - around) // 2
    spikes = recording.read(first, around)
    intensity = tfp(spikes, window=min(window, around))
    # The threshold is unknown, so the brightest half percent is shown white.
    white = max(float(np.quantile(statistics.rate_by_pixel, 0.995)), 1e-3)
    pictures = {
        "tfp": to_picture(intensity, white),
        "tfi": to_picture(tfi(spikes), white),
        "rate": to_picture(statistics.rate_by_pixel, white),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out}: cannot be made: {error.strerror}") from None
    written = {}
    for name, picture in pictures.items():
        write_atomically(out / f"{name}.png", cv2.imencode(".png", picture)[1].tobytes())
        written[name] = str(out / f"{name}.png")
    moving = moving_pictures(recording, start, steps, window, 40, white)
    target = out / f"animation.{animation.value}"
    _write_animation(target, list(moving))
    return written | {"animation": str(target)}


def _write_animation(path: Path, pictures: list) -> None:
    import io

    import numpy as np
    from PIL import Image

    from vrtspike_jax.restoration.sinks import write_atomically
    from vrtspike_jax.restoration.video import video_writer

    if path.suffix == ".mp4":
        with video_writer(path, pictures[0].shape, 15, crf=20) as write:
            for picture in pictures:
                write(np.repeat(picture[..., None], 3, -1))
        return
    images = [Image.fromarray(picture).quantize(64) for picture in pictures]
    data = io.BytesIO()
    images[0].save(
        data, "GIF", save_all=True, append_images=images[1:], duration=66, loop=0, optimize=True
    )
    write_atomically(path, data.getvalue())


def _is_checkpoint(path: Path) -> bool:
    if (path / "meta" / "metadata").exists() or (path / "checkpoints").is_dir():
        return True
    return path.name == "checkpoints"


def _inspect_checkpoint(path: Path) -> dict[str, Any]:
    import math

    from vrtspike_jax.training import checkpoint_files as files

    checkpoint = files.locate(path)
    meta = files.read_meta(checkpoint)
    try:
        files.verify(checkpoint)
        damage = None
    except ValueError as error:
        damage = str(error)
    return {
        "kind": "checkpoint",
        "path": str(checkpoint),
        "step": meta.step,
        "steps_kept": files.find_steps(checkpoint.parent),
        "damage": damage,
        "parameters": sum(math.prod(shape) for shape in meta.params.values()),
        "averaged": (checkpoint / "ema").is_dir(),
        "metrics": meta.metrics,
        "best": meta.best,
        "versions": meta.versions,
        "config": meta.config,
    }


def _is_weights(path: Path) -> bool:
    if path.exists() and path.suffix != ".safetensors":
        return False  # known without loading JAX
    from vrtspike_jax import weights

    return weights.is_weights(weights.find(path))


def _inspect_weights(path: Path) -> dict[str, Any]:
    import jax

    from vrtspike_jax import weights

    path = weights.find(path)
    _, params, config = weights.load_weights(path)
    about = {k: v for k, v in weights.read_about(path).items() if k not in ("config", "format")}
    return {
        "kind": "weights",
        "path": str(path),
        "bytes": path.stat().st_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        **about,
        "config": config.to_dict(),
    }


def _inspect_data_set(path: Path) -> dict[str, Any]:
    if (path / "dataset_info.json").is_file():
        return _inspect_prepared(path)
    from vrtspike_jax.cli.layouts import guess_layout, list_splits
    from vrtspike_jax.data.layouts import LayoutOptions, find_readable
    from vrtspike_jax.data.paths import Root
    from vrtspike_jax.data.verify import VerifyOptions, verify_sequences

    layout = guess_layout(path)
    splits = list_splits(path, layout)
    if not splits:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:4]) or "nothing"
        raise ValueError(
            f"{path}: found {found}; wanted a .dat, a checkpoint, or a data set "
            "(SPLIT/SEQUENCE/{blur,sharp,spike})"
        )
    root = Root(path)
    found: dict[str, Any] = {"kind": "data set", "path": str(path), "layout": layout, "splits": {}}
    for split in splits:
        faults: dict[str, str] = {}

        def note(name: str, error: Exception, faults: dict[str, str] = faults) -> None:
            faults[name] = str(error)

        readable = find_readable(root, split, LayoutOptions(layout=layout), note)
        sequences = verify_sequences(readable, VerifyOptions(), note)
        found["splits"][split] = {
            "sequences": len(sequences),
            "frames": sum(len(sequence.files) for sequence in sequences),
            "sizes": sorted({str(sequence.geometry) for sequence in sequences}),
            "steps_per_frame": sorted({b - a for s in sequences for a, b in s.exposures}),
            "firing_rate": _firing_rate(sequences),
            "faults": faults,
        }
    return found


def _firing_rate(sequences: list) -> float | None:
    """Of the first exposure of up to eight sequences, spread over the split."""
    import numpy as np

    from vrtspike_jax.spikes import read_dat

    rates = []
    for sequence in sequences[:: max(1, len(sequences) // 8)][:8]:
        first, last = sequence.exposures[0]
        size = sequence.geometry.spike
        spikes = read_dat(
            sequence.spike_path(0),
            *size,
            start=first,
            count=last - first,
            head_columns=sequence.head_columns,
        )
        rates.append(float(spikes.mean()))
    return float(np.mean(rates)) if rates else None


def _inspect_prepared(path: Path) -> dict[str, Any]:
    from vrtspike_jax.data.paths import Root
    from vrtspike_jax.data.prepared import PreparedStore

    try:
        splits = list(json.loads((path / "metadata.json").read_text())["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / 'metadata.json'}: cannot be read: {error}") from None
    found: dict[str, Any] = {"kind": "prepared data set", "path": str(path), "splits": {}}
    for split in splits:
        store = PreparedStore(Root(path), split)
        numbers = range(len(store.lengths))
        found["splits"][split] = {
            "sequences": len(store.lengths),
            "frames": sum(store.lengths),
            "sizes": sorted({str(store.geometry(i)) for i in numbers}),
            "steps_per_frame": sorted({store.steps(i) for i in numbers}),
        }
    return found


def _print(found: dict[str, Any], indent: str = "") -> None:
    for key, value in found.items():
        if value in (None, [], {}):
            continue
        if isinstance(value, dict) and value:
            print(f"{indent}{key}:")
            _print(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"{indent}{key}:")
            for entry in value:
                shown = (f"{k}={v}" for k, v in entry.items() if v is not False)
                print(f"{indent}  " + " ".join(shown))
        else:
            text = f"{value:.4f}" if isinstance(value, float) else value
            print(f"{indent}{key}: {text}")
