import json
from pathlib import Path

import pytest
from bench_command_test import TinyModel

from vrtspike_jax import doctor
from vrtspike_jax.cli.configs import load_config
from vrtspike_jax.training.config import check_config

CONFIG = Path(__file__).parents[2] / "configs" / "baseline.py"
SETTINGS = ["--set", "loss.vgg_weight=0.0", "--set", "data.clip_length=2"]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr("vrtspike_jax.models.build.build_model", lambda config: TinyModel())
    monkeypatch.setattr("vrtspike_jax.hardware.copy_bandwidth", lambda: 1e9)


def test_it_measures_tries_and_writes_a_config_that_loads(vrtspike, tmp_path):
    written = tmp_path / "here.py"
    result = vrtspike(
        "doctor", "--config", CONFIG, "--batch", 1, "--crop", 64, "--write", written,
        "--json", tmp_path / "a.json", *SETTINGS,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["rates"]["matrix_float32_flops"] > 1e6
    assert found["device"]["platform"] == "cpu" and found["free_bytes"] > 2**20
    sizes = {
        (t["batch_size"], t["crop_size"], t["remat"]): t["total_bytes"] for t in found["trials"]
    }
    # The state, the clip, and the activations of a convolution of 16 channels.
    assert sizes[1, 64, "none"] > 2 * 64 * 64 * 16 * 4
    advice = found["advice"]
    config = load_config(str(written))
    assert config.data.batch_size == advice["batch_size"] == 6  # all clips of an optimiser step
    assert config.optim.accumulation_steps == 1
    assert config.model.remat == advice["remat"] == "none"
    assert config.data.crop_size == 256  # the baseline's own
    assert (config.data.clip_length, config.loss.vgg_weight) == (2, 0.0)  # as it was tried
    check_config(config)
    again = vrtspike("doctor", "--config", CONFIG, "--write", written)
    assert again.exit_code == 2 and "nothing is overwritten" in again.stderr


def _proportional(factors):
    """Memory of 1000 bytes and then in proportion to clips, pixels and a factor of the remat."""

    def measure(batch, crop, remat):
        size = 1000 + batch * crop**2 * factors[remat]
        return doctor.Trial(batch, crop, remat, int(size), int(size))

    return measure


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        (1e9, (6, 256, "none", 1)),
        (2.5 * 256**2 * 10, (2, 256, "none", 3)),
        (0.9 * 256**2 * 10, (3, 256, "block", 2)),
        (0.2 * 256**2 * 10, (3, 128, "block", 2)),
        (100, None),
    ],
)
def test_advice_is_the_largest_batch_that_fits(limit, wanted):
    config = load_config(str(CONFIG))
    config.model.remat = "block"
    measure = _proportional({"none": 10, "block": 2.5, "attn": 5, "ffn": 6})
    trials = [measure(b, c, r) for b in (1, 2) for c in (128, 256) for r in ("none", "block")]
    advice = doctor.advise(config, trials, limit, measure)
    if wanted is None:
        assert advice is None
    else:
        found = (advice.batch_size, advice.crop_size, advice.remat, advice.accumulation_steps)
        assert found == wanted
        assert advice.expected_bytes <= limit


def test_a_choice_that_turns_out_too_large_is_made_smaller():
    config = load_config(str(CONFIG))
    honest = _proportional({"none": 10, "block": 2.5})

    def measure(batch, crop, remat):
        trial = honest(batch, crop, remat)
        if batch <= 2:
            return trial
        return doctor.Trial(batch, crop, remat, 3 * trial.total_bytes, 0)

    trials = [measure(b, 256, "none") for b in (1, 2)]
    limit = 7 * 256**2 * 10
    advice = doctor.advise(config, trials, limit, measure)
    assert advice.batch_size == 2 and advice.expected_bytes <= limit


def test_bad_input_is_one_line_and_code_2(vrtspike, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module\n")
    for args, message in (
        (["--config", "nowhere.py"], "no such file"),
        (["--write", tmp_path / "x.py"], "needs --config"),
        (["--config", CONFIG.parents[1] / "pyproject.toml"], "wanted a Python file"),
        (["--config", broken], "broken.py: cannot be run"),
        (["--config", CONFIG, "--batch", 0], "greater than or equal to 1"),
        (["--config", CONFIG, "--set", "data.crop=1"], "no field data.crop"),
    ):
        result = vrtspike("doctor", *args)
        assert result.exit_code == 2 and message in result.stderr
