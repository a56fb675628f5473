import csv
import json

import cv2
import numpy as np
import pytest
import world

from vrtspike_jax.metrics import psnr, ssim


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    return root, world.write_dataset(root, sequences=("a", "street/1"))


def test_scores_are_those_of_the_files(vrtspike, checkpoint, dataset, tmp_path):
    root, content = dataset
    out = tmp_path / "scores"
    result = vrtspike(
        "evaluate", "--data", root, "--split", "test", "--checkpoint", checkpoint, "--out", out,
        "--tile", 64, "--tile-overlap", 16, "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((out / "metrics.json").read_text())
    assert json.loads(result.stdout) == found
    assert list(found["mean"]) == ["blurred", "tfp", "tfi", "restored"]
    means = []
    for name, (blur, sharp) in content.items():
        pairs = list(zip(blur, sharp, strict=True))
        expected = {
            "psnr_rgb": np.mean([psnr(b, s) for b, s in pairs]),
            "psnr_y": np.mean([psnr(b, s, y_channel=True) for b, s in pairs]),
            "ssim_rgb": np.mean([ssim(b, s) for b, s in pairs]),
            "ssim_y": np.mean([ssim(b, s, y_channel=True) for b, s in pairs]),
        }
        entry = found["sequences"][name]
        assert entry["frames"] == len(blur)
        for metric, value in expected.items():
            assert entry["mean"]["blurred"][metric] == pytest.approx(value, rel=1e-6)
            # The model gives the blurred frames back.
            assert entry["mean"]["restored"][metric] == pytest.approx(value, rel=1e-6)
            assert entry["mean"]["restored"][f"{metric}_float"] == pytest.approx(value, rel=1e-4)
        assert entry["mean"]["tfp"] != entry["mean"]["blurred"]
        means.append(expected["psnr_rgb"])
    assert found["mean"]["blurred"]["psnr_rgb"] == pytest.approx(np.mean(means), rel=1e-6)
    assert all(0 < frame["firing_rate"] < 1 for frame in found["frames"])


def test_the_table_of_frames_and_the_pictures_agree_with_the_json(
    vrtspike, checkpoint, dataset, tmp_path
):
    root, content = dataset
    out = tmp_path / "scores"
    command = ["evaluate", "--data", root, "--checkpoint", checkpoint, "--out", out]
    result = vrtspike(*command, "--pictures", 2)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "metrics.json").read_text())
    with open(out / "frames.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(found["frames"]) == 4 * 9
    for row in rows:
        frame = next(
            f
            for f in found["frames"]
            if (f["sequence"], f["frame"]) == (row["sequence"], row["frame"])
        )
        for metric, value in frame["scores"][row["method"]].items():
            assert float(row[metric]) == pytest.approx(value, abs=1e-5)
    assert len(found["pictures"]) == 4
    for entry in found["pictures"]:
        sharp = cv2.imread(str(out / entry["files"]["sharp"]))[..., ::-1]
        index = int(entry["frame"])
        np.testing.assert_array_equal(sharp, content[entry["sequence"]][1][index])
        assert set(entry["files"]) == {"blurred", "restored", "sharp", "tfp", "tfi"}
        assert len(entry["activity"]) == 16
    assert "restored" in result.stdout and "psnr_rgb" in result.stdout
    again = vrtspike(*command)
    assert again.exit_code == 2 and "nothing is overwritten" in again.stderr


def test_a_model_without_a_spike_branch_is_scored_too(vrtspike, dataset, tmp_path):
    plain = world.write_checkpoint(tmp_path / "plain", gain=0.5, spikes=False)
    out = tmp_path / "scores"
    result = vrtspike("evaluate", "--data", dataset[0], "--out", out, "--checkpoint", plain)
    assert result.exit_code == 0, result.output
    mean = json.loads((out / "metrics.json").read_text())["mean"]
    assert mean["restored"]["psnr_rgb"] < mean["blurred"]["psnr_rgb"] - 10


def test_without_a_checkpoint_the_spikes_are_scored_alone(vrtspike, dataset, tmp_path, monkeypatch):
    monkeypatch.delenv("VRTSPIKE_CHECKPOINT", raising=False)
    out = tmp_path / "scores"
    result = vrtspike("evaluate", "--data", dataset[0], "--out", out)
    assert result.exit_code == 0, result.output
    assert list(json.loads((out / "metrics.json").read_text())["mean"]) == ["blurred", "tfp", "tfi"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--split", "train"], "no such folder"),
        (["--data", "nowhere"], "no such folder of a data set"),
        (["--lpips", "x.npz"], "wanted both or neither"),
        (["--lpips", "x.npz", "--vgg16", "y.npz"], "--lpips x.npz: no such file"),
        (["--out", f"{__file__}/scores"], "cannot be made: Not a directory"),
        (["--spike-scale", "0.4"], "wanted a multiple of"),
        (["--checkpoint", "nowhere"], "no checkpoint found"),
        (["--tile", "16"], "at least 64"),
    ],
)
def test_bad_input_is_one_line_and_code_2(vrtspike, checkpoint, dataset, tmp_path, args, message):
    options = {"--data": dataset[0], "--out": tmp_path / "out", "--checkpoint": checkpoint}
    options |= dict(zip(args[::2], args[1::2], strict=True))
    result = vrtspike("evaluate", *[x for pair in options.items() for x in pair])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_a_damaged_frame_stops_it_and_nothing_is_left(vrtspike, checkpoint, tmp_path):
    root = tmp_path / "set"
    world.write_dataset(root)
    victim = root / "test" / "b" / "sharp" / "00000001.png"
    data = bytearray(victim.read_bytes())
    data[300:600] = bytes(300)
    victim.write_bytes(data)
    out = tmp_path / "out"
    result = vrtspike("evaluate", "--data", root, "--out", out, "--checkpoint", checkpoint)
    assert result.exit_code == 2
    assert str(victim) in result.stderr
    assert not out.exists()
