import json
import os
import subprocess
import sys

import numpy as np
import pytest
import world
from safetensors.numpy import load_file, save_file

from vrtspike_jax.benchmark import random_params
from vrtspike_jax.convert import to_torch
from vrtspike_jax.models import VRT, VRTWithSpike

BACKBONE = VRT(
    upscale=1, window_size=(2, 8, 8), depths=(1,) * 7 + (1,), indep_reconsts=(),
    embed_dims=(8,) * 8, num_heads=(1,) * 8, deformable_groups=2,
)  # fmt: skip
MODEL = VRTWithSpike(BACKBONE, 4, (8,) * 4, tsa_heads=1, fuse_heads=1)
FIELDS = ["--set", "tsa_heads=1", "--set", "fuse_heads=1"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small VRT with spikes, as its PyTorch file would be."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    inputs = {"blur": np.zeros((1, 2, 64, 64, 3)), "spikes": np.zeros((1, 2, 32, 32, 4))}
    save_file(to_torch(random_params(MODEL, inputs), MODEL), path)
    return path


def test_there_and_back_gives_the_same_file(vrtspike, weights, tmp_path):
    there, back = tmp_path / "checkpoint", tmp_path / "back.safetensors"
    result = vrtspike("convert", weights, there, *FIELDS, "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["kind"] == "vrt_spike"
    inspected = json.loads(vrtspike("inspect", there, "--json", "-").stdout)
    assert inspected["config"]["model"]["spike_bins"] == 4
    assert vrtspike("convert", there, back).exit_code == 0
    before, after = load_file(weights), load_file(back)
    assert set(before) <= set(after)  # buffers come with it
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_without_pytorch_a_pth_is_one_line_that_says_what_to_install(
    vrtspike, weights, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "in.pth").touch()
    for args in ([tmp_path / "in.pth", tmp_path / "out"], [weights, tmp_path / "new" / "out.pth"]):
        result = vrtspike("convert", *args)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
        assert "need PyTorch: pip install 'vrtspike-jax[torch]'" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]
    assert "pip install 'vrtspike-jax[torch]'" in vrtspike("convert", "--help").stdout


def test_bad_weights_and_destinations_are_one_line_and_code_2(vrtspike, weights, tmp_path):
    arrays = load_file(weights)
    arrays.pop(next(name for name in arrays if "conv_last" in name))
    save_file(arrays, tmp_path / "broken.safetensors")
    (tmp_path / "there").mkdir()
    for args, message in (
        ([tmp_path / "broken.safetensors", tmp_path / "out"], "conv_last"),
        ([tmp_path / "missing.safetensors", tmp_path / "out"], "weights not found"),
        ([weights, tmp_path / "there"], "exists"),
        ([weights, tmp_path / "out", "--set", "heads"], "wanted name=value"),
    ):
        result = vrtspike("convert", *args)
        assert result.exit_code == 2 and message in result.stderr, result.output
        assert not (tmp_path / "out").exists()


def test_a_real_model_restores_what_was_converted(weights, tmp_path):
    """The commands as a user runs them, with the real network, small."""
    blur, spikes, frames = world.write_sequence(tmp_path, 3, (64, 72))
    # Compiled quickly rather than well.
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "cache")

    def run(*args):
        command = [sys.executable, "-m", "vrtspike_jax.cli.app", *map(str, args)]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    done = run("convert", weights, tmp_path / "model", *FIELDS)
    assert done.returncode == 0, done.stderr
    done = run(
        "deblur", "--blur", blur, "--spikes", spikes, "--out", tmp_path / "out",
        "--checkpoint", tmp_path / "model", "--no-tile", "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clip_length"] == 2
    restored = world.read_images(tmp_path / "out")
    assert restored.shape == frames.shape
    # Random weights change little, as the network adds to its input; but they change something.
    difference = np.abs(restored.astype(int) - frames)
    assert 0 < difference.mean() < 100
