"""Trains for an hour and watches the host: memory, processes, shared memory, waiting for input.

    python scripts/soak.py --minutes=60

Runs `python -m vrtspike_jax.main` on the CPU in a process of its own, asks it to stop with SIGTERM
when the time is over, and prints a table. Exit code 1 if a limit is exceeded, or if the run was too
short to tell.

Memory counts from the second validation on: up to there programs are compiled and pools are filled.
A step's working memory comes and goes, so what is compared is the least held in each stretch. It
must be flat both ways: memory that is given back at the same time would hide a leak.
"""

import argparse
import dataclasses
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# Validations before memory counts: the first compiles its program, the second reuses it, and
# checkpoints fall in between. So many more must pass, or the run was too short to show a slow leak.
SETTLING_VALIDATIONS = 2
MEASURED_VALIDATIONS = 4
# Stretches, of equally many steps, of which the least memory is compared. Each holds moments
# between two steps however slow the machine is at times, which stretches of time would not.
STRETCHES = 24
# Change of the memory held after settling, up or down, and share of the time spent waiting for
# input.
MAX_CHANGE_MIB_PER_HOUR = 64.0
MAX_INPUT_WAIT = 0.05


@dataclasses.dataclass(frozen=True)
class Sample:
    """The process tree at one moment.

    Attributes:
        seconds: since the start.
        mib: memory of all its processes, see `own_mib`.
        processes: how many they are.
        step: the last step that was logged; 0 before the first.
        validations: how many were logged.
    """

    seconds: float
    mib: float
    processes: int
    step: int
    validations: int


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


def own_mib(process: int) -> float:
    """Resident memory of a process without files; shared pages count once over all that map them.

    Pages of files, such as libraries, are left out: the system drops them as it likes, and a
    process's share in them depends on what else runs.
    """
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    fields = [line.split() for line in lines]
    return sum(int(f[1]) for f in fields if f[:1] in (["Pss_Anon:"], ["Pss_Shmem:"])) / 1024


def shared_memory() -> set[str]:
    """Names in /dev/shm and of System V segments."""
    names = {path.name for path in Path("/dev/shm").iterdir()}
    segments = Path("/proc/sysvipc/shm")
    if segments.exists():
        names |= {line.split()[1] for line in segments.read_text().splitlines()[1:]}
    return names


def read_lines(metrics: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl so far; none before it exists."""
    if not metrics.exists():
        return []
    whole = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole]


def watch(
    process: subprocess.Popen, metrics: Path, seconds: float, every: float
) -> tuple[list[Sample], set[int]]:
    """Samples memory until the time is over or the process ends; also all processes ever seen."""
    start, samples, seen = time.monotonic(), [], set()
    while process.poll() is None and time.monotonic() - start < seconds:
        processes = tree(process.pid)
        seen |= set(processes)
        total = sum(map(own_mib, processes))
        lines = read_lines(metrics)
        step = max((line["step"] for line in lines), default=0)
        validations = sum("eval_psnr_rgb" in line for line in lines)
        now = time.monotonic() - start
        samples.append(Sample(now, total, len(processes), step, validations))
        time.sleep(every)
    return samples, seen


def settled(samples: list[Sample]) -> list[Sample]:
    """What counts: the samples from the last validation of settling on."""
    return [s for s in samples if s.validations >= SETTLING_VALIDATIONS]


def held(samples: list[Sample]) -> list[Sample]:
    """The sample with the least memory of each of STRETCHES stretches of equally many steps."""
    if not samples:
        return []
    first = samples[0].step
    length = max(samples[-1].step - first, 1) / STRETCHES
    least: dict[int, Sample] = {}
    for sample in samples:
        stretch = min(int((sample.step - first) / length), STRETCHES - 1)
        if stretch not in least or sample.mib < least[stretch].mib:
            least[stretch] = sample
    return list(least.values())


def growth_per_hour(samples: list[Sample]) -> float:
    """Slope of the memory held, MiB an hour: the median of all pairs' slopes (Theil-Sen)."""
    slopes = [
        (b.mib - a.mib) / (b.seconds - a.seconds)
        for a, b in itertools.combinations(held(samples), 2)
    ]
    return 3600 * statistics.median(slopes) if slopes else 0.0


def input_wait(metrics: Path) -> float:
    """Share of the steps' time that was spent waiting for input."""
    lines = [line for line in read_lines(metrics) if "step_seconds" in line]
    lines = lines[1:]  # the first holds the compilation
    seconds = sum(line["step_seconds"] for line in lines)
    waited = sum(line["step_seconds"] * line["input_wait_fraction"] for line in lines)
    return waited / max(seconds, 1e-9)


def main() -> int:
    """Runs the soak; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--every", type=float, default=2, help="seconds between samples")
    parser.add_argument("--samples", type=Path, help="writes the samples here, as JSON lines")
    parser.add_argument("options", nargs="*", help="more flags, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, "-m", "vrtspike_jax.main", f"--config={arguments.config}"]
        # More steps than the time allows; scoring now and then belongs to it.
        command += [f"--workdir={workdir}", "--config.num_steps=10000000", *arguments.options]
        seconds, every = 60 * arguments.minutes, arguments.every
        return soak(command, workdir, seconds, every, arguments.samples)


def soak(
    command: list[str], workdir: Path, seconds: float, every: float, kept: Path | None = None
) -> int:
    """Runs a training for some time, and judges it.

    Args:
        command: trains in `workdir`, for longer than `seconds`.
        workdir: does not exist yet; what the command prints is kept in a file beside it.
        seconds: after which it is asked to stop.
        every: seconds between samples.
        kept: file to keep the samples in.

    Returns:
        0 if all limits were kept, else 1.
    """
    before, metrics, log = shared_memory(), workdir / "metrics.jsonl", workdir.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        samples, seen = watch(process, metrics, seconds, every)
        early = process.poll()
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=600)
    if kept is not None:
        kept.write_text("".join(json.dumps(dataclasses.asdict(s)) + "\n" for s in samples))
    if early is not None or not samples or not metrics.exists():
        print(log.read_text()[-3000:], file=sys.stderr)
        print(f"training ended by itself with exit code {code}", file=sys.stderr)
        return 1
    # Workers that end with their parent may need a moment.
    time.sleep(2)
    left = [pid for pid in seen if Path(f"/proc/{pid}").exists()]
    rows = memory_rows(samples)
    rows += leaving_rows(samples, left, shared_memory() - before, metrics, code)
    return report(rows)


# What was looked at, found, wanted ("" if anything goes), and whether it is good.
Row = tuple[str, str, str, bool]


def memory_rows(samples: list[Sample]) -> list[Row]:
    """Judges memory."""
    counted = settled(samples)
    before = counted[0] if counted else samples[-1]
    validations = samples[-1].validations - before.validations
    steps = samples[-1].step - before.step
    rows = [
        ("time", f"{samples[-1].seconds / 60:.1f} min, {samples[-1].step} steps", "", True),
        ("settling", f"{before.step} steps, {before.validations} validations", "", True),
        (
            "validations after settling",
            f"{validations} in {steps} steps",
            f"at least {MEASURED_VALIDATIONS}",
            validations >= MEASURED_VALIDATIONS,
        ),
    ]
    if len(held(counted)) > 1:
        least, growth = [s.mib for s in held(counted)], growth_per_hour(counted)
        rows += [
            ("memory held", f"{min(least):,.0f} to {max(least):,.0f} MiB", "", True),
            ("highest moment", f"{max(s.mib for s in samples):,.0f} MiB", "", True),
            (
                "growth of memory held",
                f"{growth:+.1f} MiB/h",
                f"within {MAX_CHANGE_MIB_PER_HOUR:g} of 0",
                abs(growth) <= MAX_CHANGE_MIB_PER_HOUR,
            ),
        ]
    return rows


def leaving_rows(
    samples: list[Sample], left: list[int], segments: set[str], metrics: Path, code: int
) -> list[Row]:
    """Judges processes, shared memory, waiting for input, and the end."""
    waited = input_wait(metrics)
    return [
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


def report(rows: list[Row]) -> int:
    """Prints the table; returns the exit code."""
    table = Table("what", "found", "wanted", "")
    for what, found, wanted, good in rows:
        table.add_row(what, found, wanted, "" if not wanted else "ok" if good else "FAILED")
    Console(width=100).print(table)
    return 0 if all(good for *_, good in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
