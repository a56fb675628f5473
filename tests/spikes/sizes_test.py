import cv2
import numpy as np
import pytest

from vrtspike_jax.spikes import DatError, plausible_sizes, simulate, write_dat


def recording(path, height, width, steps, head=0):
    """A smooth pattern that drifts, so that rows, columns and steps resemble their neighbours."""
    rng = np.random.default_rng(0)
    coarse = rng.random((9, 12)).astype(np.float32)
    picture = cv2.resize(coarse, (width + 40, height + 40), interpolation=cv2.INTER_LINEAR)
    gray = np.stack([
        picture[20 : height + 20, t // 12 % 40 : t // 12 % 40 + width] for t in range(steps)
    ])  # fmt: skip
    write_dat(path, simulate(gray, 1.5, 1), head_columns=head)


@pytest.mark.parametrize(
    ("height", "width", "steps", "head", "known"),
    [
        (96, 128, 150, 0, False),
        (120, 160, 150, 0, False),
        (360, 640, 44, 0, True),
        (250, 400, 60, 0, True),
        (250, 400, 60, 16, True),
    ],
)
def test_the_true_size_is_the_first_guess(tmp_path, height, width, steps, head, known):
    recording(tmp_path / "a.dat", height, width, steps, head)
    guess = plausible_sizes(tmp_path / "a.dat")[0]
    found = (guess.height, guess.width, guess.head_columns, guess.num_frames)
    assert found == (height, width, head, steps)
    assert guess.known == known


def test_every_guess_divides_the_file(tmp_path):
    recording(tmp_path / "a.dat", 96, 128, 50)
    guesses = plausible_sizes(tmp_path / "a.dat", limit=5)
    assert len(guesses) == 5
    for guess in guesses:
        bits = guess.height * (guess.width + guess.head_columns)
        assert bits // 8 * guess.num_frames == 96 * 128 // 8 * 50


def test_a_dark_recording_still_gets_guesses(tmp_path):
    write_dat(tmp_path / "a.dat", np.zeros((20, 250, 400), np.uint8))
    guess = plausible_sizes(tmp_path / "a.dat")[0]
    assert np.isfinite(guess.score)


def test_missing_and_empty_files_raise(tmp_path):
    with pytest.raises(DatError, match="no such"):
        plausible_sizes(tmp_path / "none.dat")
    (tmp_path / "a.dat").touch()
    with pytest.raises(DatError, match="empty"):
        plausible_sizes(tmp_path / "a.dat")
