import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vrtspike_jax.training.interrupt import StopRequest

STAND_IN = Path(__file__).with_name("stand_in.py")


def start(workdir):
    return subprocess.Popen(
        [sys.executable, str(STAND_IN), str(workdir), "num_steps=100000", "log_every_steps=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_steps(workdir, lines=3, seconds=240):
    end = time.monotonic() + seconds
    path = workdir / "metrics.jsonl"
    while time.monotonic() < end:
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return
        time.sleep(0.2)
    raise AssertionError(f"no {lines} lines in {path} after {seconds} s")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_noted_and_handlers_are_put_back(number, code):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.now() and stop.exit_code == 0
        signal.raise_signal(number)
        assert stop.now() and stop.agreed(1) and stop.exit_code == code
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.now()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_process_told_to_end_saves_within_seconds_and_says_how_to_go_on(tmp_path):
    process = start(tmp_path)
    wait_for_steps(tmp_path)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - asked < 30
    assert "saved; the same command goes on from here" in output
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert f"stopped at step {max(steps)}" in output
