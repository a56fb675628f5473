"""A step of training with kernels, each of four devices taking its clips, equals one device's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("split_step.py")


@pytest.mark.slow
def test_step_with_kernels_on_four_devices_equals_one_and_moves_gradients_alone():
    done = subprocess.run(
        [sys.executable, PROGRAM], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["found"] == pytest.approx(result["wanted"], rel=1e-4)
    assert result["apart"] < 1e-3
    moved = result["collectives"]
    assert set(moved) == {"all-reduce", "all-gather"}
    assert moved["all-reduce"] <= result["largest"]
    assert moved["all-gather"] <= 4  # each clip's loss
