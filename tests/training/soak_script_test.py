"""The soak must be able to fail: what it says of runs that leak, settle late, or end too soon."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "scripts" / "soak.py"
# A run like the quickstart's on two cores.
STEP_SECONDS, EVAL_EVERY, MINUTES = 1.0, 160, 60
WORKSPACE = 428.0


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def run(soak, memory, minutes=MINUTES, step_seconds=STEP_SECONDS):
    """Samples of a run that holds `memory(step)` MiB, and a workspace five sixths of the time."""
    samples = []
    for seconds in range(0, 60 * minutes, 5):
        step = int(seconds / step_seconds)
        working = WORKSPACE if seconds // 5 % 6 else 0.0
        samples.append(
            soak.Sample(seconds, memory(step) + working, 1, step - step % 10, step // EVAL_EVERY)
        )
    return samples


def failed(soak, samples):
    return [name for name, *_, good in soak.memory_rows(samples) if not good]


def test_memory_that_comes_and_goes_within_a_step_is_no_growth(soak):
    assert failed(soak, run(soak, lambda step: 2000)) == []


def test_a_time_in_which_hardly_a_step_ends_is_no_change(soak):
    slow_from, slow_until, seconds_per_slow_step = 600, 2400, 50
    samples = []
    for sample in run(soak, lambda step: 2000):
        slow = min(max(sample.seconds - slow_from, 0), slow_until - slow_from)
        step = int(sample.seconds - slow + slow / seconds_per_slow_step)
        busy = slow_from <= sample.seconds < slow_until
        mib = 2000 + WORKSPACE if busy else sample.mib
        samples.append(soak.Sample(sample.seconds, mib, 1, step, step // EVAL_EVERY))
    assert failed(soak, samples) == []


def test_what_the_first_validations_add_does_not_count(soak):
    def settling(step):
        return 2000 + 132 * (step >= EVAL_EVERY) + 20 * (step >= 2 * EVAL_EVERY)

    assert failed(soak, run(soak, settling)) == []


@pytest.mark.parametrize("step_seconds", [1.0, 3.0], ids=["free machine", "busy machine"])
@pytest.mark.parametrize("leak", [1.0, 0.1])
def test_a_leak_with_every_step_is_caught(soak, leak, step_seconds):
    samples = run(soak, lambda step: 2000 + leak * step, step_seconds=step_seconds)
    assert failed(soak, samples) == ["growth of memory held"]
    wanted = leak * 3600 / step_seconds
    assert math.isclose(soak.growth_per_hour(soak.settled(samples)), wanted, rel_tol=0.02)


def test_a_leak_with_every_validation_is_caught(soak):
    samples = run(soak, lambda step: 2000 + 5 * (step // EVAL_EVERY))
    assert failed(soak, samples) == ["growth of memory held"]


def test_memory_given_back_is_not_called_flat_since_it_may_hide_a_leak(soak):
    samples = run(soak, lambda step: 3000 - 0.3 * step)
    assert failed(soak, samples) == ["growth of memory held"]


@pytest.mark.parametrize("steps", [100, 2 * EVAL_EVERY + 100])
def test_a_run_too_short_to_show_a_leak_is_not_called_good(soak, steps):
    samples = run(soak, lambda step: 2000, step_seconds=60 * MINUTES / steps)
    assert failed(soak, samples) == ["validations after settling"]


@pytest.mark.slow
def test_a_training_that_keeps_a_mebibyte_a_step_is_found_to_grow_by_that(soak, tmp_path):
    workdir, seconds = tmp_path / "run", 120
    command = [sys.executable, str(HERE / "leaking.py"), "1", str(workdir), "num_steps=1000000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        samples, _ = soak.watch(process, workdir / "metrics.jsonl", seconds, 0.5)
    finally:
        process.terminate()
        process.wait(timeout=60)
    assert "growth of memory held" in failed(soak, samples)
    counted = soak.settled(samples)
    hours = (counted[-1].seconds - counted[0].seconds) / 3600
    steps = counted[-1].step - counted[0].step
    assert 0.7 < soak.growth_per_hour(counted) * hours / steps < 1.5
