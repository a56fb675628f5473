import json
import subprocess
import sys

import pytest
import world


def test_a_set_is_prepared_and_can_be_scored_and_inspected(vrtspike, checkpoint, tmp_path):
    world.write_dataset(tmp_path / "set", "train", ("a", "broken"))
    world.write_dataset(tmp_path / "set", "test", ("b",))
    (tmp_path / "set" / "train" / "broken" / "spike" / "00000002.dat").write_bytes(b"short")
    command = ["prepare", "svrt", tmp_path / "set", "--data-dir", tmp_path / "data", "--bins", 4]
    result = vrtspike(*command, "--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["sequences"] == {"train": 1, "test": 1}
    assert report["frames"] == {"train": 4, "test": 4}
    (skipped,) = report["skipped"]
    assert skipped["sequence"] == "broken" and "00000002.dat" in skipped["reason"]
    assert "train: 1 sequence left out" in result.stderr and "00000002.dat" in result.stderr
    assert report["voxel"]["std"] > 0

    inspected = vrtspike("inspect", report["folder"], "--json", "-")
    assert json.loads(inspected.stdout)["splits"]["test"]["frames"] == 4
    scores = {}
    for name, root in (("files", tmp_path / "set"), ("prepared", report["folder"])):
        out = tmp_path / name
        args = ("--data", root, "--checkpoint", checkpoint, "--out", out, "--json", "-")
        done = vrtspike("evaluate", *args)
        assert done.exit_code == 0, done.output
        scores[name] = json.loads(done.stdout)["mean"]
    assert scores["files"] == scores["prepared"]
    again = vrtspike(*command)
    assert again.exit_code == 0, again.output


def test_in_a_shell_nothing_but_the_report_is_said(tmp_path):
    """A process of its own: there TFDS is first imported while the bar is shown."""
    world.write_dataset(tmp_path / "set", "train", ("a",))
    command = [sys.executable, "-m", "vrtspike_jax.cli.app", "prepare", "svrt", tmp_path / "set"]
    done = subprocess.run(
        [*command, "--data-dir", tmp_path / "data"], capture_output=True, text=True, check=True
    )
    assert "train: 1 sequence, 4 frames" in done.stderr
    assert "Exception" not in done.stderr and "Error" not in done.stderr


def test_gopro_is_found_in_the_folders_that_the_originals_readme_shows(vrtspike, tmp_path):
    root = tmp_path / "set"
    for split, sequence in (("train", "a"), ("test", "b")):
        world.write_dataset(tmp_path / "plain", split, (sequence,))
        plain = tmp_path / "plain" / split / sequence
        places = {
            "blur": f"GOPRO_Large/{split}_GT_blurred/{sequence}",
            "sharp": f"GOPRO_Large/{split}_GT/{sequence}",
            "spike": f"GOPRO_Large_spike_seq/{split}/{sequence}/spike",
        }
        for part, place in places.items():
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (plain / part).rename(root / place)
    result = vrtspike("prepare", "gopro", root, "--data-dir", tmp_path / "data", "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["frames"] == {"train": 4, "test": 4}
    found = vrtspike("inspect", root, "--json", "-")
    assert json.loads(found.stdout)["splits"]["test"]["frames"] == 4
    scores = vrtspike("evaluate", "--data", root, "--out", tmp_path / "scores")
    assert scores.exit_code == 0, scores.output


@pytest.mark.parametrize(
    ("kind", "message"), [("gopro", "no such folder"), ("svrt", "no usable sequence")]
)
def test_a_folder_of_another_layout_is_one_line_and_code_2(vrtspike, tmp_path, kind, message):
    (tmp_path / "set" / "train").mkdir(parents=True)
    result = vrtspike("prepare", kind, tmp_path / "set", "--data-dir", tmp_path / "data")
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "data").exists()
