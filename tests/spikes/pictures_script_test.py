import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from vrtspike_jax.spikes import simulate, write_dat

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "spike_pictures.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def still_recording(tmp_path):
    gray = np.linspace(0.05, 0.95, 48 * 64, dtype=np.float32).reshape(48, 64)
    write_dat(tmp_path / "a.dat", simulate(np.broadcast_to(gray, (200, 48, 64)), 1.5, 0))
    cv2.imwrite(str(tmp_path / "sharp.png"), np.uint8(gray * 255))
    (tmp_path / "config.yaml").write_text("spike_h: 48\nspike_w: 64\n")
    return tmp_path


def test_pictures_of_a_recording_show_the_scene(still_recording):
    out = still_recording / "pictures"
    result = run(
        still_recording / "a.dat", "--out", out, "--threshold", 1.5, "--bins", 5,
        "--sharp", still_recording / "sharp.png",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    sharp = cv2.imread(str(still_recording / "sharp.png"), cv2.IMREAD_GRAYSCALE).astype(float)
    for name, tolerance in (("tfp", 12), ("tfp_exposure", 4), ("tfi", 12)):
        picture = cv2.imread(str(out / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        assert picture.shape == (48, 64)
        assert np.abs(picture[:36] - sharp[:36]).mean() < tolerance
        assert f"sharp picture, {name}: 0.9" in result.stdout
    # Five bins, four in a row.
    assert cv2.imread(str(out / "voxels.png"), cv2.IMREAD_GRAYSCALE).shape == (96, 256)


def test_a_wrong_size_is_one_line_and_exit_code_2(still_recording):
    result = run(
        still_recording / "a.dat", "--out", still_recording / "p", "--height", 47, "--width", 64
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert "376 bytes" in result.stderr
    assert not (still_recording / "p").exists()
