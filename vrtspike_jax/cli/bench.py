"""`vrtspike bench`: time, memory and arithmetic of a config, and the ratio of two runs."""

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vrtspike_jax.cli import console
from vrtspike_jax.cli.errors import reports_errors

EXAMPLES = """Examples:

vrtspike bench --config=configs/baseline.py --mode train --json train.json

vrtspike bench --config=configs/quickstart.py --mode infer --breakdown

vrtspike bench --config=configs/baseline.py --mode infer --size 720x1280 --frames 5

vrtspike bench --compare before.json after.json
"""


class Mode(StrEnum):
    """What to time."""

    train = "train"
    infer = "infer"


@reports_errors
def command(
    config: Annotated[str, typer.Option(help="Config file, path[:argument].")] = "",
    mode: Annotated[Mode, typer.Option(help="Train step or inference.")] = Mode.train,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Clips in a step (else the config's).")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames in a clip (likewise).")] = None,
    size: Annotated[str, typer.Option(help="Crop, HxW or one number (likewise).")] = "",
    seconds: Annotated[float, typer.Option(min=0, help="Time to spend on timed steps.")] = 10.0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, key=value; repeatable.")
    ] = None,
    breakdown: Annotated[
        bool, typer.Option("--breakdown", help="Share of each stage and operation.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result here; - for stdout.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two --json files: print their ratios.")
    ] = None,
) -> None:
    """Time a config's train step or inference on this machine, on any device JAX sees."""
    if compare is not None:
        _print_comparison(*compare)
        return
    if not config:
        raise ValueError("--config is missing: wanted a config file (or --compare A.json B.json)")
    console.check_writable(json_file, "--json")
    from vrtspike_jax import benchmark
    from vrtspike_jax.cli.configs import load_config
    from vrtspike_jax.training.config import check_config

    loaded = load_config(config, set_)
    check_config(loaded)
    height, width = console.parse_size(size or str(loaded.data.crop_size))
    workload = benchmark.build_workload(loaded, mode.value, batch, frames, height, width)
    result = benchmark.run(workload, config, seconds, breakdown=breakdown)
    _print_result(result)
    console.write_json(json_file, dataclasses.asdict(result))


def _print_result(result) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False, title=f"{result.config} {result.mode}")
    for name, value in _rows(result):
        table.add_row(name, value)
    console.print(table)
    if result.breakdown:
        _print_breakdown(console, result.breakdown)


def _rows(result) -> list[tuple[str, str]]:
    shape = " ".join(f"{key} {value}" for key, value in result.shape.items())
    device = result.device
    memory = result.compiled_bytes
    peak = f"{result.peak_bytes / 2**30:.2f} GiB" if result.peak_bytes else "not counted here"
    return [
        ("device", f"{device['count']} x {device['kind']} ({device['platform']})"),
        ("versions", " ".join(f"{k} {v}" for k, v in result.versions.items())),
        ("clip", f"{shape}, {result.dtype}"),
        ("trace + compile", f"{result.trace_seconds:.1f} s + {result.compile_seconds:.1f} s"),
        ("first step", f"{result.first_step_seconds:.2f} s"),
        (
            "step",
            f"{result.median_ms:.2f} ms (10% {result.p10_ms:.2f}, 90% {result.p90_ms:.2f}, "
            f"min {result.min_ms:.2f}; {result.steps} steps), alone {result.alone_ms:.2f} ms",
        ),
        ("clips/s", f"{result.clips_per_second:.3f}"),
        ("peak memory", peak),
        (
            "compiler's memory",
            f"{memory['total'] / 2**30:.2f} GiB ({memory['temporaries'] / 2**30:.2f} temporary)",
        ),
        ("model FLOPs", f"{result.model_flops / 1e12:.3f} TFLOP"),
        (
            "rate",
            f"{result.flops_per_second / 1e12:.2f} TFLOP/s, {100 * result.utilisation:.1f}% of a "
            f"measured {result.matrix_rate / 1e12:.2f} TFLOP/s matrix product",
        ),
    ]


def _print_breakdown(console, breakdown: dict[str, Any]) -> None:
    from rich.table import Table

    for part in ("stages", "operations", "instructions"):
        table = Table(part, "ms/step", "share", "runs/step")
        table.columns[0].overflow = "fold"
        for share in breakdown[part][:40]:
            table.add_row(
                share["name"],
                f"{share['milliseconds']:.3f}",
                f"{100 * share['fraction']:.1f}%",
                f"{share['runs_per_step']:.0f}",
            )
        console.print(table)
    console.print(f"device time in all: {breakdown['device_milliseconds']:.2f} ms/step")


def _print_comparison(before: Path, after: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from vrtspike_jax import benchmark

    a, b = benchmark.load(before), benchmark.load(after)
    table = Table("", str(before), str(after), "ratio")
    for name in ("mode", "dtype"):
        table.add_row(name, str(a.get(name)), str(b.get(name)), "")
    table.add_row("clip", json.dumps(a["shape"]), json.dumps(b["shape"]), "")
    names = (
        "median_ms",
        "min_ms",
        "alone_ms",
        "clips_per_second",
        "compile_seconds",
        "peak_bytes",
        "model_flops",
        "utilisation",
    )
    for name in names:
        old, new = a.get(name), b.get(name)
        ratio = f"{new / old:.3f}" if old and new else ""
        table.add_row(name, _number(old), _number(new), ratio)
    Console().print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"
