"""Over a mesh each device runs the kernels on its own part of the batch, forward and backward."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("split_operations.py")
FEW = (
    "packed windows",
    "mutual attention",
    "feed-forward",
    "normalised with input",
    "normed projection",
    "gate",
    "warp",
    "deformable",
    "time with bias",
)


def results(*args):
    command = [sys.executable, PROGRAM, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def batch_and_parameters_split():
    return results("interpret", "xla", "2,2,1", *FEW)[0]


@pytest.mark.parametrize("name", FEW)
def test_results_and_gradients_equal_those_of_one_device(name, batch_and_parameters_split):
    assert batch_and_parameters_split[name]["error"] < 2e-5
    assert batch_and_parameters_split[name]["samples"] == 1  # each on one device


@pytest.mark.parametrize("name", FEW)
def test_nothing_but_parameters_moves_between_devices(name, batch_and_parameters_split):
    found = batch_and_parameters_split[name]
    assert set(found["collectives"]) <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert max(found["collectives"].values()) <= found["shared"] < found["part"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["8,1,1", "2,2,2"], ids=["data", "data x fsdp x spatial"])
def test_every_operation_equals_itself_on_one_device(mesh):
    found, warnings = results("interpret", "interpret", mesh)
    assert len(found) >= 10
    rows_split = mesh.endswith("2")
    for name, result in found.items():
        assert result["error"] < 2e-6, name
        # Gradients of what is shared; twice, as `vmap` sums its two after the devices have.
        limit = 2 * result["shared"]
        if rows_split:  # Then devices gather the rows of their clips, and no other clips.
            limit = max(limit, result["part"])
        assert max(result["collectives"].values()) <= limit, name
    assert "rows" in warnings if rows_split else "rows" not in warnings
