import json
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import pytest
from typer.testing import CliRunner

from vrtspike_jax.cli.app import app

CONFIG = str(Path(__file__).parents[2] / "configs" / "baseline.py")


class TinyModel(nn.Module):
    """Stands in for VRTWithSpike: same call, compiles in a second."""

    spike_bins: int = 32
    dtype: str = "float32"

    @nn.compact
    def __call__(self, frames, voxels, train=False):
        h, w = frames.shape[2:4]
        spikes = jnp.repeat(jnp.repeat(voxels, h // voxels.shape[2], 2), w // voxels.shape[3], 3)
        x = jnp.concatenate([frames, spikes], -1)
        x = nn.relu(nn.Conv(16, (3, 3), name="stage1")(x))
        return frames + nn.Conv(3, (3, 3), name="conv_last")(x)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr("vrtspike_jax.models.build.build_model", lambda config: TinyModel())
    monkeypatch.setenv("COLUMNS", "160")

    def run(*args):
        settings = ["--set", "loss.vgg_weight=0.0", "--set", "model.dtype=float32"]
        return CliRunner().invoke(app, ["bench", *args, *settings])

    return run


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_bench_measures_and_writes_what_it_prints(bench, tmp_path, mode):
    out = tmp_path / "a.json"
    size = ["--size", "64x96", "--frames", "2", "--batch", "2", "--seconds", "0.2"]
    result = bench("--config", CONFIG, "--mode", mode, *size, "--breakdown", "--json", str(out))
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["shape"] == {"batch": 2, "frames": 2, "height": 64, "width": 96}
    # Two convolutions of 3 x 3 on every pixel, 35 -> 16 -> 3 channels; training counts three times.
    forward = 2 * (2 * 2 * 64 * 96) * 9 * (35 * 16 + 16 * 3)
    assert found["model_flops"] == forward * (3 if mode == "train" else 1)
    assert found["steps"] >= 3 and found["compile_seconds"] > 0
    assert found["min_ms"] <= found["median_ms"] <= found["p90_ms"]
    assert found["clips_per_second"] == pytest.approx(2e3 / found["median_ms"])
    assert found["alone_ms"] > 0 and f"alone {found['alone_ms']:.2f} ms" in result.output
    assert 0 < found["utilisation"] < 1.5
    assert found["compiled_bytes"]["total"] > 2 * 2 * 64 * 96 * 3
    stages = {share["name"] for share in found["breakdown"]["stages"]}
    assert {"TinyModel"} & {name.split("/")[0] for name in stages}
    assert f"{found['median_ms']:.2f} ms" in result.output
    assert {"jax", "jaxlib", "flax", "python"} <= set(found["versions"])


def test_compare_prints_ratios(bench, tmp_path):
    record = {"mode": "train", "shape": {"batch": 1}, "dtype": "bfloat16", "model_flops": 5}
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps(record | {"median_ms": 200.0, "clips_per_second": 5.0}))
    after.write_text(json.dumps(record | {"median_ms": 50.0, "clips_per_second": 20.0}))
    result = bench("--compare", str(before), str(after))
    assert result.exit_code == 0, result.output
    rows = {line.split("│")[1].strip(): line for line in result.output.splitlines() if "│" in line}
    assert "0.250" in rows["median_ms"] and "4.000" in rows["clips_per_second"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--config is missing"),
        (["--config", "nowhere.py"], "nowhere.py: no such file"),
        (["--config", CONFIG, "--set", "model.no_such=1"], "no_such"),
        (["--config", CONFIG, "--size", "64by64"], "wanted HEIGHTxWIDTH"),
        (["--config", CONFIG, "--json", "no/such/folder/a.json"], "does not exist"),
        (["--compare", "a.json", "b.json"], "a.json: cannot read a benchmark result"),
    ],
)
def test_bad_input_is_one_line_and_code_2(bench, args, message):
    result = bench(*args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
