"""Injects faults into training and prints which were survived, and what was lost.

    python scripts/faults.py --kills=20

Trains a tiny model of tests/training in processes of its own: killed at random moments, asked to
stop, out of disk space, with damaged checkpoints, with unreadable clips and with clips that make
the loss NaN. "Lost" is what differs, bit for bit, from a run to which nothing happened.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "training"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "data"))
import jax
import ml_collections
import numpy as np
import stand_in
from example_sets import PlainSet
from rich.console import Console
from rich.table import Table

from vrtspike_jax.data.errors import TooManyBadClips
from vrtspike_jax.models import build
from vrtspike_jax.training import checkpoint_files as files
from vrtspike_jax.training import checkpoints
from vrtspike_jax.training.loop import TrainingDivergedError, train
from vrtspike_jax.training.run import prepare

PROGRAM = Path(stand_in.__file__)
STEPS = 60
OPTIONS = {"num_steps": STEPS, "checkpoint_every_steps": 4, "eval_every_steps": 1000}
MIB = 2**20


@dataclasses.dataclass
class Outcome:
    """A row of the table."""

    fault: str
    injected: int
    survived: int
    lost: str


class Program:
    """Runs of the stand-in program, with one cache of compiled code."""

    def __init__(self, folder: Path):
        self._environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}

    def start(self, workdir: Path, **options: object) -> subprocess.Popen:
        """Starts to train; output goes to <workdir>.log."""
        overrides = [f"{name}={value}" for name, value in (OPTIONS | options).items()]
        with workdir.with_suffix(".log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, PROGRAM, workdir, *overrides],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, workdir: Path, **options: object) -> int:
        """Trains to the end; returns the exit code."""
        return self.start(workdir, **options).wait(timeout=900)


def fingerprint(workdir: Path) -> tuple[list[str], list[np.ndarray]]:
    """Lines of training without their times, and everything of the last checkpoint's parameters."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "psnr", "learning_rate", "grad_norm")
    losses = [json.dumps({name: line[name] for name in kept}) for line in lines if "loss" in line]
    params = checkpoints.load_for_inference(workdir, "latest")[1]
    return losses, [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def difference(workdir: Path, wanted: tuple[list[str], list[np.ndarray]]) -> str:
    """What a run lost, compared with another; "nothing" if they are equal bit for bit."""
    losses, params = fingerprint(workdir)
    if losses != wanted[0]:
        return f"{len(set(wanted[0]) - set(losses))} of {len(wanted[0])} lines of the log"
    equal = all(np.array_equal(a, b) for a, b in zip(params, wanted[1], strict=True))
    return "nothing" if equal else "parameters differ"


def last_step(workdir: Path) -> int:
    """The last step in the log; 0 if there is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((json.loads(x).get("step", 0) for x in lines if x.endswith("\n")), default=0)


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Returns when a step is logged, or the process has ended."""
    while process.poll() is None and last_step(workdir) < step:
        time.sleep(0.02)


def killed(program: Program, folder: Path, wanted, count: int) -> Outcome:
    """SIGKILL, each time at a random moment after the first new step."""
    workdir, rng, survived, done = folder / "killed", random.Random(0), 0, 0
    for _ in range(count):
        process = program.start(workdir)
        before = last_step(workdir)
        # Steps that are thrown away are few, so that the run gets as far as the last kill.
        wait_for_step(process, workdir, before + rng.randrange(0, 2 + STEPS // count))
        time.sleep(rng.random() * 0.3)
        done += process.poll() is None
        process.send_signal(signal.SIGKILL)
        survived += process.wait() == -signal.SIGKILL
    code = program.run(workdir)
    lost = difference(workdir, wanted) if code == 0 else f"the run: exit code {code}"
    return Outcome("SIGKILL at a random moment", done, survived if code == 0 else 0, lost)


def terminated(program: Program, folder: Path, wanted, count: int) -> Outcome:
    """SIGTERM: the step at hand is saved, the exit code is 143."""
    workdir, survived, slowest = folder / "terminated", 0, 0.0
    for number in range(1, count + 1):
        process = program.start(workdir)
        wait_for_step(process, workdir, number * STEPS // (count + 1))
        start = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=120)
        slowest = max(slowest, time.perf_counter() - start)
        saved = files.find_steps(workdir / "checkpoints")[-1:]
        survived += code == 143 and saved == [last_step(workdir)]
    code = program.run(workdir)
    lost = difference(workdir, wanted) if code == 0 else f"the run: exit code {code}"
    return Outcome(f"SIGTERM (left within {slowest:.1f} s)", count, survived, lost)


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A file system of a few MiB, if this user may mount one."""
    place = folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", place]
    if subprocess.run(command, capture_output=True).returncode:
        raise PermissionError("mounting a small disk needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def full_disk(program: Program, folder: Path, wanted, left: int) -> Outcome:
    """The disk fills up; then there is room again."""
    name = f"disk full, {left // 1024} KiB left"
    with small_disk(folder, 8) as disk:
        workdir = disk / "run"
        process = program.start(workdir)
        wait_for_step(process, workdir, 9)
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            file.write(bytes(max(0, shutil.disk_usage(disk).free - left)))
        code = process.wait(timeout=600)
        says = "disk" in workdir.with_suffix(".log").read_text().splitlines()[-1]
        for step in files.find_steps(workdir / "checkpoints"):
            files.verify(workdir / "checkpoints" / str(step))
        intact = bool(files.find_steps(workdir / "checkpoints"))
        ballast.unlink()
        again = program.run(workdir)
        lost = difference(workdir, wanted) if again == 0 else f"the run: exit code {again}"
    return Outcome(name, 1, int(code == 1 and says and intact and again == 0), lost)


def damaged_checkpoints(source: Path, folder: Path, kind: str, count: int) -> Outcome:
    """One file of the newest checkpoint is damaged; training goes on from the one before."""
    rng, survived, console = random.Random(kind), 0, Console(quiet=True)
    older, newest = files.find_steps(source / "checkpoints")[-2:]
    config = stand_in.tiny_config(STEPS)
    for number in range(count):
        workdir = folder / f"{kind} {number}"
        shutil.copytree(source, workdir)
        checkpoint = workdir / "checkpoints" / str(newest)
        whole = {p.name for p in checkpoint.rglob("*") if p.is_file()} - {"commit_success.txt"}
        paths = [p for p in checkpoint.rglob("*") if p.is_file() and p.name in whole]
        path = rng.choice([p for p in paths if p.name not in files.UNCHECKED])
        if kind == "half-written":
            temporary = checkpoint.with_name(f"{newest}.orbax-checkpoint-tmp-1")
            shutil.move(checkpoint, temporary)
            for extra in rng.sample(paths, len(paths) // 2):
                (temporary / extra.relative_to(checkpoint)).unlink()
        else:
            _damage(path, kind, rng)
        run = prepare(config, workdir, console)
        aside = (workdir / "damaged" / str(newest)).exists()
        gone = not list((workdir / "checkpoints").glob("*tmp*"))
        survived += int(run.state.step) == older and (gone if kind == "half-written" else aside)
        run.close()
        shutil.rmtree(workdir)
    return Outcome(f"checkpoint: {kind}", count, survived, f"{newest - older} steps each")


def _damage(path: Path, kind: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "missing file":
        path.unlink()
        return
    if kind == "truncated file":
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def clips_config(folder: Path) -> tuple[ml_collections.ConfigDict, Path]:
    """A config for a small data set in files, and its folder of blurred training frames."""
    made = PlainSet(folder / "set")
    made.add(sequence=0, frames=12)
    made.add(split="test", sequence=1, frames=3)
    config = stand_in.tiny_config(20)
    config.unlock()
    config.data = made.config(clip_length=2, batch_size=2, max_bad_clips=4)
    config.eval_every_steps = 1000
    return config.lock(), folder / "set" / "train" / "seq0" / "blur"


def unreadable_clips(folder: Path, frames: int) -> Outcome:
    """Frames are damaged after they were checked; each spoils the clips that hold it."""
    config, blur = clips_config(folder)
    run = prepare(config, folder / "run", Console(quiet=True))
    run.close()
    for number in range(frames):
        path = blur / f"{3 * number:08d}.png"
        data = bytearray(path.read_bytes())
        # The end stays as it is, so that the quick check before training sees nothing.
        data[60:80] = bytes(20)
        path.write_bytes(data)
    try:
        train(config, folder / "run")
        stopped = False
    except TooManyBadClips:
        stopped = True
    seen = {e["clip"] for e in _events(folder / "run", "unreadable_clip")}
    expected = stopped == (frames > 2)
    what = "stopped, as config.data.max_bad_clips=4 says" if stopped else "skipped and named"
    return Outcome(
        f"{frames} damaged frames", frames, frames * expected, f"{len(seen)} clips {what}"
    )


class Poisoned(stand_in.Tiny):
    """Gives NaN for dark clips."""

    threshold: float = 0.0

    def __call__(self, frames, voxels, train=False):
        restored = super().__call__(frames, voxels, train)
        dark = frames.mean(axis=(1, 2, 3, 4), keepdims=True) < self.threshold
        return jax.numpy.where(dark, jax.numpy.nan, restored)


def nan_clips(folder: Path, threshold: float) -> Outcome:
    """Some clips give NaN: their steps are skipped; with all of them the run stops."""
    build.MODELS["poisoned"] = lambda f: build.construct(Poisoned, f, "config.model")
    config = stand_in.tiny_config(40)
    config.unlock()
    config.model.name, config.model.threshold = "poisoned", threshold
    config.eval_every_steps = 1000
    try:
        train(config, folder / "run")
        stopped = False
    except TrainingDivergedError:
        stopped = True
    skipped = _events(folder / "run", "skipped")
    named = sum(bool(event["clips"]) for event in skipped)
    kept = checkpoints.load_for_inference(folder / "run", "latest")[1]
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
    good = named if finite and stopped == (threshold > 0.9) else 0
    what = "then stopped, last good checkpoint kept" if stopped else "their updates, no more"
    return Outcome(f"NaN from clips darker than {threshold}", len(skipped), good, what)


def _events(workdir: Path, name: str) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == name]


def attempt(rows: list[Outcome], fault: Callable[..., Outcome], *arguments: object) -> None:
    """Adds what came of a fault; an error is a fault that was not survived."""
    try:
        rows.append(fault(*arguments))
    except Exception as error:
        name = f"{fault.__name__} {arguments[-1]}"
        rows.append(Outcome(name, 1, 0, f"{type(error).__name__}: {str(error)[:80]}"))
    print(rows[-1], file=sys.stderr, flush=True)


def main() -> int:
    """Injects all faults; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--damages", type=int, default=10, help="of each kind")
    arguments = parser.parse_args()
    stand_in.register()
    rows: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = Program(folder)
        assert program.run(folder / "whole") == 0, (folder / "whole.log").read_text()[-2000:]
        wanted = fingerprint(folder / "whole")
        attempt(rows, killed, program, folder, wanted, arguments.kills)
        attempt(rows, terminated, program, folder, wanted, arguments.stops)
        attempt(rows, full_disk, program, folder, wanted, 32 * 1024)
        for kind in ("truncated file", "flipped bit", "missing file", "half-written"):
            source = folder / "whole"
            attempt(rows, damaged_checkpoints, source, folder, kind, arguments.damages)
        for number, (fault, argument) in enumerate(
            [(unreadable_clips, 1), (unreadable_clips, 4), (nan_clips, 0.4), (nan_clips, 2.0)]
        ):
            attempt(rows, fault, folder / f"clips {number}", argument)
    table = Table("fault", "injected", "survived", "lost")
    for row in rows:
        table.add_row(row.fault, str(row.injected), str(row.survived), row.lost)
    Console(width=110).print(table)
    return 0 if all(row.survived == row.injected for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
