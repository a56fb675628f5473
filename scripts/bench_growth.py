"""Time and memory against crop size, number of frames and batch size: a table and two plots.

    python scripts/bench_growth.py --config configs/baseline.py --mode train --out growth

One quantity varies, the others stay as in the config. Writes `<out>.json`, `<out>.md` and
`<out>_{ms,gib}.svg`. The slope is that of a power law through the measured points: at most 1 means
that cost grows no faster than the number of pixels.
"""

import argparse
import dataclasses
import json
import math
import pathlib

import jax
import numpy as np

from vrtspike_jax import benchmark
from vrtspike_jax.cli.configs import load_config
from vrtspike_jax.report.charts import line_chart, picture

QUANTITIES = ("crop", "frames", "batch")
# Colours and dashes of the report's charts, under the names they have there.
STYLE = dict(zip(QUANTITIES, ("restored", "tfi", "tfp"), strict=True))


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement."""

    varied: str
    crop: int
    frames: int
    batch: int
    median_ms: float
    bytes: int

    @property
    def pixels(self) -> int:
        """Of all frames of a step."""
        return self.crop**2 * self.frames * self.batch


def main() -> None:
    """Measures, prints the table, and writes the files."""
    args = _arguments()
    config = load_config(args.config, args.set)
    own = {
        "crop": config.data.crop_size,
        "frames": config.data.clip_length,
        "batch": config.data.batch_size,
    }
    points = []
    for varied in QUANTITIES:
        for value in getattr(args, varied):
            points += _measure(config, args.mode, varied, {**own, varied: value}, args.seconds)
    args.out.with_suffix(".json").write_text(
        json.dumps([dataclasses.asdict(p) for p in points], indent=1) + "\n"
    )
    table = _table(points)
    print(table)
    args.out.with_suffix(".md").write_text(table)
    for unit, value in (("ms", lambda p: p.median_ms), ("gib", lambda p: p.bytes / 2**30)):
        path = args.out.with_name(f"{args.out.name}_{unit}.svg")
        path.write_text(_plot(points, value, unit))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = lambda text: [int(part) for part in text.split(",") if part]  # noqa: E731
    parser.add_argument("--config", default="configs/baseline.py", help="config file")
    parser.add_argument("--set", action="append", help="override, key=value")
    parser.add_argument("--mode", choices=("train", "infer"), default="train")
    parser.add_argument("--crop", type=numbers, default=[128, 256, 384, 512])
    parser.add_argument("--frames", type=numbers, default=[3, 5, 8, 16])
    parser.add_argument("--batch", type=numbers, default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each point")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="name of the files")
    return parser.parse_args()


def _measure(config, mode: str, varied: str, values: dict[str, int], seconds: float) -> list[Point]:
    crop, frames, batch = (values[name] for name in QUANTITIES)
    try:
        workload = benchmark.build_workload(config, mode, batch, frames, crop, crop)
        result = benchmark.run(workload, seconds=seconds)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"{values}: does not fit")
        return []
    print(f"{values}: {result.median_ms:.1f} ms", flush=True)
    total = result.compiled_bytes["total"]
    return [Point(varied, crop, frames, batch, result.median_ms, total)]


def _slope(points: list[Point], value) -> float:
    """Exponent of a power law in the number of pixels, by least squares in logarithms."""
    if len(points) < 2:
        return math.nan
    x, y = (np.log([f(p) for p in points]) for f in (lambda p: p.pixels, value))
    return float(np.polyfit(x, y, 1)[0])


def _table(points: list[Point]) -> str:
    lines = ["| varied | crop | frames | batch | step, ms | memory, GiB |", "| --- " * 6 + "|"]
    for p in points:
        gib = p.bytes / 2**30
        lines.append(
            f"| {p.varied} | {p.crop} | {p.frames} | {p.batch} | {p.median_ms:.1f} | {gib:.2f} |"
        )
    lines += ["", "| varied | exponent of time | exponent of memory |", "| --- " * 3 + "|"]
    for varied in QUANTITIES:
        chosen = [p for p in points if p.varied == varied]
        time, memory = _slope(chosen, lambda p: p.median_ms), _slope(chosen, lambda p: p.bytes)
        lines.append(f"| {varied} | {time:.2f} | {memory:.2f} |")
    return "\n".join(lines) + "\n"


def _plot(points: list[Point], value, unit: str) -> str:
    """Cost a million pixels: a flat line is growth in proportion."""
    lines = {
        STYLE[varied]: [value(p) / p.pixels * 1e6 for p in points if p.varied == varied]
        for varied in QUANTITIES
    }
    lines = {style: line for style, line in lines.items() if line}
    labels = {STYLE[varied]: f"more {varied}" for varied in QUANTITIES}
    chart = line_chart(lines, labels, f"{unit} a million pixels", "measurement", f"{unit}/Mpixel")
    return picture(chart)


if __name__ == "__main__":
    main()
