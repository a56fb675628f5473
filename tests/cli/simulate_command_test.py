import json

import cv2
import numpy as np
import pytest
import world

from vrtspike_jax.spikes import read_dat, tfp


def test_blur_is_the_mean_and_sharp_the_middle_and_spikes_show_both(vrtspike, tmp_path):
    frames = world.make_frames(16, (48, 66))
    video = world.write_images(tmp_path / "fast", frames)
    out = tmp_path / "set"
    result = vrtspike(
        "simulate", "--video", video, "--out", out, "--split", "train", "--exposure", 5,
        "--substeps", 20, "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (made,) = json.loads(result.stdout)
    assert made["frames"] == 3 and made["steps"] == 100 and made["spike_size"] == [24, 33]
    folder = out / "train" / "fast"
    for i in range(3):
        exposed = frames[5 * i : 5 * i + 5]
        blur = cv2.imread(str(folder / "blur" / f"{i:08d}.png"))[..., ::-1]
        sharp = cv2.imread(str(folder / "sharp" / f"{i:08d}.png"))[..., ::-1]
        np.testing.assert_array_equal(sharp, exposed[2])
        assert np.abs(blur - exposed.astype(np.float64).mean(0)).max() <= 0.51
        spikes = read_dat(folder / "spike" / f"{i:08d}.dat", 24, 33)
        assert spikes.shape == (100, 24, 33)
        # Counting spikes gives back the light: the mean of the exposure and its next frame.
        gray = (frames[5 * i : 5 * i + 6] / 255.0) @ [0.299, 0.587, 0.114]
        light = np.mean([(gray[j] + gray[min(j + 1, len(gray) - 1)]) / 2 for j in range(5)], 0)
        light = light.reshape(24, 2, 33, 2).mean((1, 3))
        assert np.abs(tfp(spikes) - light).max() < 0.03


def test_what_it_writes_can_be_evaluated_and_deblurred(vrtspike, checkpoint, tmp_path):
    frames = world.make_frames(30, (140, 160))
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("one", "two"):
        world.write_video(videos / f"{name}.mp4", frames)
    out = tmp_path / "set"
    result = vrtspike(
        "simulate", "--video", videos, "--out", out, "--shrink", 2, "--exposure", 7, "--gap", 3,
        "--substeps", 4, "--noise", 0.05, "--threshold", 1.5, "--spike-scale", 0.5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 frames of 70 x 80, 28 spike steps of 35 x 40" in result.stderr
    # Different noise in each sequence.
    files = [out / "test" / name / "spike" / "00000000.dat" for name in ("one", "two")]
    assert files[0].read_bytes() != files[1].read_bytes()
    scores = vrtspike(
        "evaluate", "--data", out, "--checkpoint", checkpoint, "--out", tmp_path / "scores"
    )
    assert scores.exit_code == 0, scores.output
    one = out / "test" / "one"
    restored = vrtspike(
        "deblur", "--blur", one / "blur", "--spikes", one / "spike", "--out", tmp_path / "out",
        "--checkpoint", checkpoint,
    )  # fmt: skip
    assert restored.exit_code == 0, restored.output


def test_interpolated_frames_are_exposed_like_others(vrtspike, tmp_path):
    frames = world.make_frames(6, (48, 66))
    video = world.write_images(tmp_path / "slow", frames)
    result = vrtspike(
        "simulate", "--video", video, "--out", tmp_path / "set", "--interpolate", 3,
        "--exposure", 5, "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (made,) = json.loads(result.stdout)
    assert made["frames"] == 3  # exposures of 5 fit into 5 * 3 + 1 frames
    # The middle of the third exposure is frame 12, which is the video's frame 4.
    sharp = cv2.imread(str(tmp_path / "set" / "test" / "slow" / "sharp" / "00000002.png"))
    np.testing.assert_array_equal(sharp[..., ::-1], frames[4])


def test_the_same_seed_gives_the_same_files_and_another_one_others(vrtspike, tmp_path):
    video = world.write_images(tmp_path / "fast", world.make_frames(11, (32, 32)))
    contents = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        args = ["--out", tmp_path / name, "--seed", seed, "--frame-noise", 0.01]
        assert vrtspike("simulate", "--video", video, *args).exit_code == 0
        folder = tmp_path / name / "test" / "fast"
        contents[name] = [p.read_bytes() for p in sorted(folder.rglob("*0.*"))]
    assert contents["a"] == contents["b"]
    assert all(x != y for x, y in zip(contents["a"][::2], contents["c"][::2], strict=True))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--exposure", 4], "wanted an odd number"),
        (["--exposure", 13], "found 11 frames, wanted at least the 13"),
        (["--shrink", 8], "wanted at least 16 x 16"),
        (["--spike-scale", 0], "wanted above 0"),
        (["--threshold", 0], "wanted a positive number"),
        (["--seed", -1], "seed -1: wanted 0 or more"),
        (["--noise", "nan"], "noise std nan: wanted 0 or more"),
        (["--interpolate", 0], "interpolate 0: wanted 1 or more"),
        (["--gap", -1], "gap -1: wanted 0 or more"),
        (["--video", "nowhere.mp4"], "no such video or folder"),
        (["--out", f"{__file__}/set"], "cannot be written: Not a directory"),
        (["--name", "../up"], "wanted one inside"),
    ],
)
def test_bad_input_is_one_line_and_code_2_and_leaves_nothing(vrtspike, tmp_path, args, message):
    video = world.write_images(tmp_path / "fast", world.make_frames(11, (48, 48)))
    before = {str(path) for path in tmp_path.rglob("*")}
    options = {"--video": video, "--out": tmp_path / "set"} | dict([args])
    result = vrtspike("simulate", *[x for pair in options.items() for x in pair])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert {str(path) for path in tmp_path.rglob("*")} == before


def test_a_picture_that_cannot_be_decoded_leaves_nothing(vrtspike, tmp_path):
    video = world.write_images(tmp_path / "fast", world.make_frames(22, (48, 48)))
    last = video / "00000020.png"
    data = bytearray(last.read_bytes())
    data[300:500] = bytes(200)
    last.write_bytes(data)
    before = {str(path) for path in tmp_path.rglob("*")}
    result = vrtspike("simulate", "--video", video, "--out", tmp_path / "set")
    assert result.exit_code == 2 and f"{last}: cannot be decoded" in result.stderr
    assert {str(path) for path in tmp_path.rglob("*")} == before


def test_a_sequence_is_not_overwritten(vrtspike, tmp_path):
    video = world.write_images(tmp_path / "fast", world.make_frames(11, (32, 32)))
    command = ["simulate", "--video", video, "--out", tmp_path / "set"]
    assert vrtspike(*command).exit_code == 0
    result = vrtspike(*command)
    assert result.exit_code == 2 and "nothing is overwritten" in result.stderr
