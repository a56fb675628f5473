"""Feeds hostile input to everything that reads files or configs, and prints what came of it.

    python scripts/fuzz.py --inputs=100000

A tenth of the inputs are drawn by hypothesis, the others bred from them (see tests/fuzz). An input
fails if it raises an error that is not documented, takes longer than seconds, allocates more than
its size explains, or if memory grows from one input to the next. Exit code 1 if any did.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "fuzz"))
import checkpoint_targets
import config_targets
import data_targets
import harness
from rich.console import Console
from rich.table import Table

BATCH = 1000
# Share of the inputs that hypothesis draws.
DRAWN = 0.1
# Memory may settle over the first batches; after them it may not grow by more, MiB.
MAX_GROWTH = 32


def main() -> int:
    """Runs all targets; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="over all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="", help="only those whose name holds this")
    arguments = parser.parse_args()
    table = Table("target", "inputs", "accepted", "refused", "slowest", "memory", "failures")
    for column in table.columns[1:]:
        column.justify = "right"
    failures, total, start = [], 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for target, count in _shares(_targets(Path(folder), arguments.target), arguments.inputs):
            report, growth, found = _run(target, count, arguments.seed)
            total += report.inputs
            failures += [f"{target.name}: {text}" for text in found]
            table.add_row(
                target.name,
                f"{report.inputs:,}",
                f"{report.accepted:,}",
                f"{report.refused:,}",
                f"{report.slowest * 1e3:,.0f} ms",
                f"{growth:+.1f} MiB",
                str(len(found)),
            )
            print(f"{target.name}: {report.inputs:,} inputs", file=sys.stderr, flush=True)
    Console(width=110).print(table)
    seconds = time.perf_counter() - start
    print(f"{total:,} inputs in {seconds:,.0f} s, {len(failures)} failures")
    for text in failures:
        print(f"\n{text}")
    return 1 if failures else 0


def _targets(folder: Path, name: str) -> list[harness.Target]:
    found = []
    for module in (data_targets, config_targets, checkpoint_targets):
        place = folder / module.__name__
        place.mkdir()
        found += [target for target in module.targets(place) if name in target.name]
    return found


def _shares(targets: list[harness.Target], inputs: int) -> list[tuple[harness.Target, int]]:
    whole = sum(target.weight for target in targets)
    return [(target, -int(-inputs * target.weight // whole)) for target in targets]


def _run(target: harness.Target, count: int, seed: int) -> tuple[harness.Report, float, list[str]]:
    """What came of `count` inputs: the report, growth of memory in MiB, and failures."""
    report, failures, levels = harness.Report(), [], []
    number = seed
    while report.inputs < count and len(failures) < 3:
        batch = min(BATCH, count - report.inputs)
        drawn = max(1, round(batch * DRAWN))
        try:
            ancestors = harness.attack(target, drawn, number, report)
            rest = batch - drawn
            harness.attack_with_offspring(target, ancestors, rest, number, report)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failures.append(f"seed {number}: " + _describe(error))
        number += 1
        levels.append(harness.resident_mib())
    settled = levels[len(levels) // 4 :]
    growth = settled[-1] - settled[0]
    if growth > MAX_GROWTH:
        failures.append(f"memory grew by {growth:.1f} MiB over {report.inputs} inputs")
    return report, growth, failures


def _describe(error: BaseException) -> str:
    lines = traceback.format_exception(error, limit=-4, chain=False)
    return "".join(lines)[-3000:]


if __name__ == "__main__":
    sys.exit(main())
