"""Trains for an hour and watches the host: memory, processes, shared memory, waiting for input.

    python scripts/soak.py --minutes=60

Runs `python -m vrtspike_jax.main` on the CPU in a process of its own, asks it to stop with SIGTERM
when the time is over, and prints a table. Exit code 1 if a limit is exceeded.
"""

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
# The first part of a run, in which caches and compiled programs settle.
SETTLING = 0.25
# Growth of resident memory over the rest, and share of the time spent waiting for input.
MAX_GROWTH_MIB_PER_HOUR = 64.0
MAX_INPUT_WAIT = 0.05


@dataclasses.dataclass(frozen=True)
class Sample:
    """The process tree at one moment."""

    seconds: float
    mib: float
    processes: int


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in parentheses may hold spaces.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = [root] if root in parents else []
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def proportional_mib(process: int) -> float:
    """Memory of a process; pages that several share are counted once over all of them."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def shared_memory() -> set[str]:
    """Names in /dev/shm and of System V segments."""
    names = {path.name for path in Path("/dev/shm").iterdir()}
    segments = Path("/proc/sysvipc/shm")
    if segments.exists():
        names |= {line.split()[1] for line in segments.read_text().splitlines()[1:]}
    return names


def watch(process: subprocess.Popen, seconds: float, every: float) -> tuple[list[Sample], set[int]]:
    """Samples memory until the time is over or the process ends; also all processes ever seen."""
    start, samples, seen = time.monotonic(), [], set()
    while process.poll() is None and time.monotonic() - start < seconds:
        processes = tree(process.pid)
        seen |= set(processes)
        total = sum(map(proportional_mib, processes))
        samples.append(Sample(time.monotonic() - start, total, len(processes)))
        time.sleep(every)
    return samples, seen


def growth_per_hour(samples: list[Sample]) -> float:
    """Slope of memory after settling, MiB an hour: the median of all pairs' slopes (Theil-Sen)."""
    settled = [s for s in samples if s.seconds >= SETTLING * samples[-1].seconds]
    thinned = settled[:: max(1, len(settled) // 200)]
    slopes = [
        (b.mib - a.mib) / (b.seconds - a.seconds)
        for i, a in enumerate(thinned)
        for b in thinned[i + 1 :]
    ]
    return 3600 * statistics.median(slopes) if slopes else 0.0


def input_wait(metrics: Path) -> tuple[float, int]:
    """Share of the steps' time that was spent waiting for input, and the last step."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines = [line for line in lines if "loss" in line][1:]  # the first holds the compilation
    seconds = sum(line["step_seconds"] for line in lines)
    waited = sum(line["step_seconds"] * line["input_wait_fraction"] for line in lines)
    return waited / max(seconds, 1e-9), lines[-1]["step"] if lines else 0


def main() -> int:
    """Runs the soak; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    parser.add_argument("options", nargs="*", help="more flags, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        before = shared_memory()
        command = [sys.executable, "-m", "vrtspike_jax.main", f"--config={arguments.config}"]
        # More steps than the time allows; scoring now and then belongs to it.
        command += [f"--workdir={workdir}", "--config.num_steps=10000000", *arguments.options]
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"JAX_PLATFORMS": "cpu"}
            )
            samples, seen = watch(process, 60 * arguments.minutes, arguments.every)
            early = process.poll()
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=600)
        if early is not None or not samples or not (workdir / "metrics.jsonl").exists():
            print((Path(folder) / "log").read_text()[-3000:], file=sys.stderr)
            print(f"training ended by itself with exit code {code}", file=sys.stderr)
            return 1
        # Workers that end with their parent may need a moment.
        time.sleep(2)
        left = [pid for pid in seen if Path(f"/proc/{pid}").exists()]
        return report(samples, left, shared_memory() - before, workdir / "metrics.jsonl", code)


def report(
    samples: list[Sample], left: list[int], segments: set[str], metrics: Path, code: int
) -> int:
    """Prints the table; returns the exit code."""
    growth = growth_per_hour(samples)
    waited, steps = input_wait(metrics)
    settled = [s.mib for s in samples if s.seconds >= SETTLING * samples[-1].seconds]
    rows = [
        ("time", f"{samples[-1].seconds / 60:.1f} min, {steps} steps", "", True),
        ("host memory", f"{min(settled):,.0f} to {max(settled):,.0f} MiB", "", True),
        (
            "growth of memory",
            f"{growth:+.1f} MiB/h",
            f"at most {MAX_GROWTH_MIB_PER_HOUR:g}",
            growth <= MAX_GROWTH_MIB_PER_HOUR,
        ),
        ("processes", f"{max(s.processes for s in samples)}", "", True),
        ("processes left behind", str(len(left)), "0", not left),
        ("shared memory left behind", ", ".join(sorted(segments)) or "none", "none", not segments),
        (
            "waiting for input",
            f"{100 * waited:.2f} %",
            f"below {100 * MAX_INPUT_WAIT:g} %",
            waited < MAX_INPUT_WAIT,
        ),
        ("exit code after SIGTERM", str(code), "143", code == 143),
    ]
    table = Table("what", "found", "wanted", "")
    for what, found, wanted, good in rows:
        table.add_row(what, found, wanted, "" if not wanted else "ok" if good else "FAILED")
    Console(width=100).print(table)
    return 0 if all(good for *_, good in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
