import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import stand_in

from vrtspike_jax.training import checkpoint_files as files
from vrtspike_jax.training import checkpoints

PROGRAM = Path(__file__).with_name("several_devices.py")
EIGHT = "--xla_force_host_platform_device_count=8"
pytestmark = pytest.mark.slow


def start(workdir, mesh, *host, flags=""):
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, PROGRAM, workdir, mesh, *map(str, host)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output[-3000:]


def result(workdir):
    """Losses of all steps, parameters after the last, and the scores."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if "loss" in line]
    assert [line["step"] for line in train] == list(range(1, 11))
    scores = [line["eval_psnr_rgb"] for line in lines if "eval_psnr_rgb" in line]
    _, params, _ = checkpoints.load_for_inference(workdir, "latest")
    return np.array([line["loss"] for line in train]), params, scores


def assert_equal_runs(found, wanted):
    """Equal but for the order in which float32 numbers are added."""
    np.testing.assert_allclose(found[0], wanted[0], rtol=2e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found[1], wanted[1]
    )
    np.testing.assert_allclose(found[2], wanted[2], rtol=1e-5)


def split_axes(workdir):
    """Mesh axes that parameters of the last checkpoint were split over."""
    text = (workdir / "checkpoints" / "10" / "params" / "_sharding").read_text()
    specs = [json.loads(value)["partition_spec"] for value in json.loads(text).values()]
    return set(re.findall(r"data|fsdp|spatial", json.dumps(specs)))


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    stand_in.register()
    workdir = tmp_path_factory.mktemp("one") / "run"
    finish(start(workdir, "1,1,1"))
    return result(workdir)


@pytest.mark.parametrize(
    ("mesh", "axes"),
    [("8,1,1", set()), ("1,8,1", {"fsdp"}), ("2,2,2", {"fsdp"}), ("1,1,8", set())],
    ids=["data", "fsdp", "data x fsdp x spatial", "spatial"],
)
def test_ten_steps_on_eight_devices_equal_those_on_one(mesh, axes, one_device, tmp_path):
    workdir = tmp_path / "run"
    finish(start(workdir, mesh, flags=EIGHT))
    assert split_axes(workdir) == axes
    assert_equal_runs(result(workdir), one_device)


@contextlib.contextmanager
def two_processes(workdir, mesh, *steps):
    """Both hosts of a run; whatever happens, they are gone in the end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = [start(workdir, mesh, index, 2, port, *steps) for index in (0, 1)]
    try:
        yield hosts
    finally:
        for host in hosts:
            host.kill()


@pytest.mark.parametrize("mesh", ["-1,1,1", "1,2,1"], ids=["data", "fsdp"])
def test_ten_steps_of_two_processes_equal_those_of_one(mesh, one_device, tmp_path):
    workdir = tmp_path / "run"
    with two_processes(workdir, mesh) as hosts:
        for host in hosts:
            finish(host)
    assert_equal_runs(result(workdir), one_device)


def test_sigterm_at_one_process_stops_both_after_the_same_step(tmp_path):
    workdir = tmp_path / "run"
    with two_processes(workdir, "-1,1,1", 100_000) as hosts:
        log = workdir / "metrics.jsonl"
        while not log.exists() or '"loss"' not in log.read_text():
            assert hosts[0].poll() is None, hosts[0].communicate()[0][-3000:]
            time.sleep(0.1)
        hosts[1].send_signal(signal.SIGTERM)
        outputs = [host.communicate(timeout=300)[0] for host in hosts]
        assert [host.returncode for host in hosts] == [143, 143], outputs[0][-3000:]
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    assert files.find_steps(workdir / "checkpoints")[-1] == last
    files.verify(workdir / "checkpoints" / str(last))
