"""`vrtspike doctor`: what this machine can do, and which settings of a config fit on it."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from vrtspike_jax.cli import console
from vrtspike_jax.cli.errors import reports_errors

EXAMPLES = """Examples:

vrtspike doctor

vrtspike doctor --config configs/baseline.py --write configs/baseline_here.py

vrtspike doctor --config configs/baseline.py --batch 1 --batch 2 --crop 256 --json doctor.json
"""


@reports_errors
def command(
    config: Annotated[str, typer.Option(help="Also see what fits of this config file.")] = "",
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size to try; repeatable (else 1 and 2).")
    ] = None,
    crop: Annotated[
        list[int] | None,
        typer.Option(min=8, help="Crop size to try; repeatable (else the config's and half)."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, key=value; repeatable.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write the recommended settings as a config file.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write what was found here; - for stdout.")
    ] = None,
) -> None:
    """Show what JAX sees and measure it; for a config, find the settings that fit in memory.

    Each trial compiles a train step, a minute or more for a large model on a GPU; nothing is
    allocated, so trials that would not fit do no harm.
    """
    console.check_writable(json_file, "--json")
    console.check_writable(write, "--write")
    if write is not None and (write.exists() or not config):
        reason = "exists already; nothing is overwritten" if write.exists() else "needs --config"
        raise ValueError(f"--write {write}: {reason}")
    loaded = _load(config, set_) if config else None
    from vrtspike_jax import compiler

    compiler.keep_compiled_programs()
    found = _look()
    if loaded is not None:
        found |= _try(loaded, config, batch, crop, set_, write)
    console.write_json(json_file, found)


def _load(config: str, overrides: list[str] | None):
    from vrtspike_jax.cli.configs import load_config
    from vrtspike_jax.training.config import check_config

    loaded = load_config(config, overrides)
    check_config(loaded)
    return loaded


def _look() -> dict[str, Any]:
    from vrtspike_jax import doctor, hardware

    device, versions = hardware.describe_devices(), hardware.versions()
    free = hardware.free_memory()
    console.say(f"devices: {device.count} x {device.kind} ({device.platform})")
    console.say("versions: " + " ".join(f"{k} {v}" for k, v in versions.items()))
    console.say(f"free memory: {free / 2**30:.1f} GiB on each device")
    rates = doctor.rates()
    console.say(
        f"matrix product: {rates['matrix_bfloat16_flops'] / 1e12:.2f} TFLOP/s bfloat16, "
        f"{rates['matrix_float32_flops'] / 1e12:.2f} float32"
    )
    console.say(
        f"copy on the device: {rates['copy_bytes'] / 1e9:.1f} GB/s; host to device: "
        f"{rates['input_bytes'] / 1e9:.1f} GB/s"
    )
    return {
        "device": dataclasses.asdict(device),
        "versions": versions,
        "free_bytes": free,
        "rates": rates,
    }


def _try(loaded, config: str, batches, crops, overrides, write: Path | None) -> dict[str, Any]:
    import itertools

    import jax

    from vrtspike_jax import doctor, hardware
    from vrtspike_jax.cli.configs import parse_override

    limit = doctor.HEADROOM * hardware.free_memory()
    own = loaded.data.crop_size
    crops = crops or sorted({max(64, own // 16 * 8), own})
    batches = batches or [jax.device_count(), 2 * jax.device_count()]
    trials = []

    def measure(batch: int, crop: int, remat: str) -> doctor.Trial:
        trials.append(doctor.measure_step(loaded, batch, crop, remat))
        last = trials[-1]
        fits = "fits" if last.total_bytes <= limit else "does not fit"
        size = f"{last.total_bytes / 2**30:.2f} GiB"
        console.say(f"  batch {batch}, crop {crop}, remat {remat}: {size}, {fits}")
        return last

    console.say(f"{config}: memory of a train step, {limit / 2**30:.1f} GiB may be used")
    for remat, crop, batch in itertools.product(("none", "block"), crops, batches):
        measure(batch, crop, remat)
    advice = doctor.advise(loaded, list(trials), limit, measure)
    if advice is None:
        console.say("nothing fits: try fewer frames (data.clip_length), or a smaller model")
    else:
        console.say(
            f"recommended: batch {advice.batch_size}, crop {advice.crop_size}, remat "
            f"{advice.remat}, {advice.accumulation_steps} accumulation steps: "
            f"{advice.expected_bytes / 2**30:.2f} GiB"
        )
        if write is not None:
            base, _, argument = config.partition(":")
            changed = dict(parse_override(text) for text in overrides or [])
            doctor.write_override(write, Path(base), advice, limit, argument, changed)
            console.say(f"written to {write}: python -m vrtspike_jax.main --config={write}")
    return {
        "limit_bytes": limit,
        "trials": [dataclasses.asdict(trial) for trial in trials],
        "advice": None if advice is None else dataclasses.asdict(advice),
    }
