import json
import os
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import world

from vrtspike_jax.spikes import write_dat


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """200 steps of a still picture, with two dead pixels and one hot pixel."""
    frame = world.make_frames(1, (60, 80))
    spikes = world.make_spikes(frame, (60, 80), 200)[0]
    spikes[:, 10, 20] = spikes[:, 40, 61] = 0
    spikes[:, 33, 44] = 1
    path = tmp_path_factory.mktemp("recording") / "recording.dat"
    write_dat(path, spikes)
    return path, spikes


def test_a_recording_is_measured(vrtspike, recording, tmp_path):
    path, spikes = recording
    result = vrtspike(
        "inspect", path, "--spike-size", "60x80", "--steps-per-second", 1000, "--json", "-"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["height"], found["width"], found["steps"]) == (60, 80, 200)
    assert found["seconds"] == 0.2
    assert found["firing_rate"] == pytest.approx(spikes.mean(), rel=1e-6)
    assert found["rate_busiest_step"] == pytest.approx(spikes.mean((1, 2)).max(), rel=1e-6)
    assert sorted(found["dead"]) == [[10, 20], [40, 61]]
    assert found["hot"] == [[33, 44]]


def test_an_unknown_size_is_guessed_and_said_to_be(vrtspike, recording):
    result = vrtspike("inspect", recording[0])
    assert result.exit_code == 0, result.output
    assert "size_from: guessed from the bits" in result.stdout
    assert "height=60 width=80" in result.stdout


@pytest.mark.parametrize("animation", ["gif", "mp4"])
def test_pictures_show_the_scene(vrtspike, recording, tmp_path, animation):
    path, _ = recording
    out = tmp_path / "look"
    result = vrtspike(
        "inspect", path, "--spike-size", "60x80", "--out", out, "--animation", animation
    )
    assert result.exit_code == 0, result.output
    rate = iio.imread(out / "rate.png").astype(float)
    for name in ("tfp", "tfi"):
        picture = iio.imread(out / f"{name}.png")
        assert picture.shape == (60, 80)
        assert np.corrcoef(picture.ravel(), rate.ravel())[0, 1] > 0.8
    moving = list(iio.imiter(out / f"animation.{animation}"))
    assert 5 < len(moving) <= 60
    gray = np.asarray(moving[3])[..., :1].astype(float).reshape(60, 80)
    assert np.corrcoef(gray.ravel(), rate.ravel())[0, 1] > 0.8


def test_a_data_set_is_counted_and_its_faults_are_named(vrtspike, tmp_path):
    world.write_dataset(tmp_path, "train", ("a", "b", "c"))
    world.write_dataset(tmp_path, "test", ("d",))
    (tmp_path / "train" / "b" / "spike" / "00000001.dat").write_bytes(b"short")
    (tmp_path / "train" / "c" / "sharp" / "00000000.png").unlink()
    result = vrtspike("inspect", tmp_path, "--json", "-")
    assert result.exit_code == 0, result.output
    splits = json.loads(result.stdout)["splits"]
    assert set(splits) == {"train", "test"}
    assert splits["train"]["sequences"] == 1 and splits["train"]["frames"] == 4
    assert set(splits["train"]["faults"]) == {"b", "c"}
    assert "00000001.dat: found 5 bytes" in splits["train"]["faults"]["b"]
    assert splits["test"]["sizes"] == ["frames 64 x 80, spikes 32 x 40"]
    assert splits["test"]["steps_per_frame"] == [16]


def test_a_checkpoint_says_what_it_is(vrtspike, checkpoint):
    result = vrtspike("inspect", checkpoint, "--json", "-")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["kind"] == "checkpoint" and found["step"] == 7 and found["parameters"] == 2
    assert found["metrics"] == {"psnr_rgb": 30.0}
    assert found["config"]["model"]["name"] == "gain" and "jax" in found["versions"]
    assert found["damage"] is None


def test_weights_say_what_they_are(vrtspike, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(vrtspike("inspect", "small", "--json", "-").stdout)
    assert found["kind"] == "weights" and found["path"].endswith("small.safetensors")
    assert 3e6 < found["parameters"] <= 4e6 and int(found["steps"]) > 0
    assert found["config"]["model"]["name"] == "shift_unet"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(unbuffered):
    command = [sys.executable, "-m", "vrtspike_jax.cli.app", "inspect", "small"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as run:
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 141


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "no such file or folder"),
        (["nowhere.safetensors"], "no such file of weights"),
        (["{dat}", "--spike-size", "61x80"], "wanted a multiple of"),
        (["{dat}", "--start", "190", "--count", "50"], "found 200 steps"),
        (["{dat}", "--out", "{dat}"], "nothing is overwritten"),
        (["{empty}"], "found nothing; wanted a .dat"),
    ],
)
def test_bad_input_is_one_line_and_code_2(vrtspike, recording, tmp_path, args, message):
    names = {"{dat}": str(recording[0]), "{empty}": str(tmp_path)}
    args = [names.get(arg, arg) for arg in args]
    if "--spike-size" not in args and "{dat}" in names and str(recording[0]) in args:
        args += ["--spike-size", "60x80"]
    result = vrtspike("inspect", *args)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1 and message in result.stderr
