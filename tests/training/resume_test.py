import json
import shutil
import signal

import numpy as np
import pytest
from orbax.checkpoint import StandardCheckpointer
from stand_in import register, tiny_config

from vrtspike_jax.training import checkpoint_files as files
from vrtspike_jax.training import feed
from vrtspike_jax.training.checkpoint_files import CheckpointMismatchError
from vrtspike_jax.training.checkpoints import load_for_inference
from vrtspike_jax.training.loop import train

TIMES = {"step_seconds", "clips_per_second", "input_wait_fraction"}


@pytest.fixture(scope="module", autouse=True)
def tiny_model():
    register()


def lines(workdir):
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def on_device_config():
    """Clips cut from reels by the step itself."""
    config = tiny_config(6)
    config.data.scenes.on_device = True
    config.data.scenes.reels = 3
    config.data.scenes.render = {
        "generated": 1.0,
        "film_exposure": (5, 9),
        "spike_noise": (0.0, 0.1),
    }
    return config


def muon_config():
    """Moments in stacks of matrices: channels enough that there are some."""
    config = tiny_config(6)
    config.optim.name, config.model.features = "muon", 16
    return config


def arrays(workdir, step):
    """Every array of a checkpoint, flat."""
    found = {}
    for item in ("params", "ema", "opt"):
        tree = StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / item)

        def walk(node, path):
            if isinstance(node, dict):
                for key, child in node.items():
                    walk(child, f"{path}/{key}")
            elif isinstance(node, list | tuple):
                for key, child in enumerate(node):
                    walk(child, f"{path}/{key}")
            elif node is not None:
                found[path] = np.asarray(node)

        walk(tree, item)
    return found


def stop_at(monkeypatch, step, number):
    """Sends this process a signal as the step after `step` asks for its batch."""
    original = feed.Feed.next
    asked = {"count": 0}

    def next_batch(self):
        asked["count"] += 1
        batch = original(self)
        if asked["count"] == step:
            signal.raise_signal(number)
        return batch

    monkeypatch.setattr(feed.Feed, "next", next_batch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 20 steps without interruption."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train(tiny_config(), workdir) == 0
    return workdir


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def test_ten_steps_restart_and_ten_more_equal_twenty_bit_for_bit(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 7, signal.SIGTERM)
        assert train(tiny_config(), tmp_path) == 143
    assert files.find_steps(tmp_path / "checkpoints")[-1] == 7
    with monkeypatch.context() as patched:
        stop_at(patched, 6, signal.SIGINT)
        assert train(tiny_config(), tmp_path) == 130
    assert train(tiny_config(), tmp_path) == 0
    expected, found = arrays(whole, 20), arrays(tmp_path, 20)
    assert expected.keys() == found.keys() and len(found) > 15
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert lines(tmp_path) == lines(whole)
    metas = [files.read_meta(w / "checkpoints" / "20") for w in (whole, tmp_path)]
    assert metas[0].best == metas[1].best and metas[0].metrics == metas[1].metrics


def test_log_has_every_step_once_and_scores_where_they_are_due(whole):
    training = [line["step"] for line in lines(whole) if "loss" in line]
    assert training == list(range(1, 21))
    scored = [line for line in lines(whole) if "eval_psnr_rgb" in line]
    assert [line["step"] for line in scored] == [10, 20]
    assert {"eval_ssim_y", "eval_psnr_y", "eval_blurred_psnr_rgb"} <= set(scored[0])
    assert (whole / "strips" / "step_0000020").is_dir()
    assert json.loads((whole / "config.json").read_text())["num_steps"] == 20


def test_the_latest_two_and_the_best_checkpoint_are_kept_and_carry_their_story(whole):
    steps = files.find_steps(whole / "checkpoints")
    meta = files.read_meta(whole / "checkpoints" / "20")
    assert set(steps) == {15, 20, meta.best["step"]}
    assert meta.config["optim"]["name"] == "adamw"
    assert {"jax", "flax", "python", "vrtspike-jax"} <= set(meta.versions)
    assert meta.metrics["psnr_rgb"] > 0 and meta.params["last/bias"] == [3]


def test_lines_beyond_the_checkpoint_and_a_line_cut_short_are_removed(copy):
    shutil.rmtree(copy / "checkpoints" / "20")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss": 0.5}\n{"step": 22, "lo')
    assert train(tiny_config(), copy) == 0
    steps = [line["step"] for line in lines(copy) if "loss" in line]
    assert steps == list(range(1, 21))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "meta"])
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_used(copy, damage, capsys):
    checkpoint = copy / "checkpoints" / "20"
    data = max((checkpoint / "params").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = data.read_bytes()
    if damage == "truncated":
        data.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        data.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif damage == "missing":
        data.unlink()
    else:
        data = checkpoint / "meta" / "metadata"
        data.write_text("{")
    assert train(tiny_config(), copy) == 0
    assert (copy / "damaged" / "20").is_dir()
    printed = capsys.readouterr().out
    assert "checkpoint 20 is damaged" in printed and data.name in printed
    assert "resuming at step 15" in printed
    assert files.find_steps(copy / "checkpoints")[-1] == 20


def test_when_every_checkpoint_is_damaged_the_run_refuses_and_changes_nothing(copy):
    for step in files.find_steps(copy / "checkpoints"):
        (copy / "checkpoints" / str(step) / "meta" / "metadata").write_text("")
    before = sorted(str(p) for p in copy.rglob("*"))
    with pytest.raises(files.DamagedCheckpointError, match="every checkpoint is damaged"):
        train(tiny_config(), copy)
    assert sorted(str(p) for p in copy.rglob("*")) == before


def test_a_half_written_checkpoint_is_named_and_removed(copy, capsys):
    partial = copy / "checkpoints" / "25.orbax-checkpoint-tmp"
    (partial / "params").mkdir(parents=True)
    assert train(tiny_config(), copy) == 0
    assert not partial.exists()
    assert "25.orbax-checkpoint-tmp" in capsys.readouterr().out.replace("\n", "")


def test_a_workdir_of_another_model_or_optimizer_is_refused_untouched(copy):
    def snapshot():
        return {str(p): p.stat().st_mtime_ns for p in copy.rglob("*")}

    before = snapshot()
    other = tiny_config()
    other.model.features = 16
    with pytest.raises(CheckpointMismatchError, match="belongs to another model"):
        train(other, copy)
    other = tiny_config()
    other.optim.name = "adafactor"
    with pytest.raises(CheckpointMismatchError, match="'adamw', not 'adafactor'"):
        train(other, copy)
    assert snapshot() == before


def test_changed_fields_are_listed_on_resume(copy, capsys):
    shutil.rmtree(copy / "checkpoints" / "20")
    config = tiny_config()
    config.optim.learning_rate = 5e-4
    assert train(config, copy) == 0
    assert "changed: optim.learning_rate: 0.001 -> 0.0005" in capsys.readouterr().out


def test_load_for_inference_gives_the_average_and_the_config(whole):
    model, params, config = load_for_inference(whole, prefer="latest")
    expected = arrays(whole, 20)
    np.testing.assert_array_equal(params["last"]["bias"], expected["ema/last/bias"])
    assert config.optim.learning_rate == 1e-3 and model.features == 8
    with pytest.raises(ValueError, match="no checkpoint found"):
        load_for_inference(whole / "strips")


@pytest.mark.parametrize("config_of", [on_device_config, muon_config])
def test_other_sources_and_optimizers_resume_bit_for_bit(tmp_path, monkeypatch, config_of):
    assert train(config_of(), tmp_path / "whole") == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 3, signal.SIGTERM)
        assert train(config_of(), tmp_path / "parts") == 143
    assert train(config_of(), tmp_path / "parts") == 0
    expected, found = (arrays(tmp_path / name, 6) for name in ("whole", "parts"))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    stacks = [name for name, array in expected.items() if name[:4] == "opt/" and array.ndim == 3]
    assert len(stacks) == 2 * (config_of is muon_config)  # of flow and rest
    assert lines(tmp_path / "whole")[-1] == lines(tmp_path / "parts")[-1]
