import numpy as np
import pytest

from vrtspike_jax.data.config import default_data_config
from vrtspike_jax.data.pipeline import train_iterator
from vrtspike_jax.scenes import expose, render_clip, scene_options
from vrtspike_jax.scenes.films import is_film, play_exposures, sample_film
from vrtspike_jax.scenes.photographs import PhotographError


@pytest.fixture
def film(tmp_path):
    """A gradient that moves by a pixel a frame."""
    x = np.arange(120) + np.arange(60)[:, None, None]
    frames = np.broadcast_to((x * 255 / 180).astype(np.uint8)[..., None], (60, 1, 120, 3))
    np.save(tmp_path / "film.npy", np.repeat(frames, 80, axis=1))
    return tmp_path / "film.npy"


def options(film, **overrides):
    values = {"films": (film,), "film_share": 1.0, "recolor": 0.0} | overrides
    return scene_options(**values)


def cut(film, seed=0, **overrides):
    return sample_film(seed, 3, 32, 40, "train", options(film, **overrides))


def test_a_clip_is_what_the_film_shows(film):
    shot = cut(film, film_shrink=(1.0, 1.0))
    assert shot.subframes % 2 == 1
    pictures = np.stack(list(play_exposures(shot)))
    assert pictures.shape == (3, shot.subframes, 32, 40, 3)
    np.testing.assert_array_equal(pictures.reshape(shot.pictures.shape), shot.pictures)
    clip = expose(shot, (16, 20), 22)
    np.testing.assert_array_equal(clip["sharp"], pictures[:, shot.subframes // 2])
    assert np.abs(clip["blur"] - pictures.mean(axis=1)).max() <= 0.5
    assert clip["spikes"].shape == (3, 22, 16, 20)


def test_shrinking_averages_areas(film):
    shot = cut(film, film_shrink=(2.0, 2.0))
    assert shot.pictures.shape[1:3] == (64, 80)
    areas = shot.pictures.reshape(-1, 32, 2, 40, 2, 3).mean(axis=(2, 4))
    played = np.concatenate(list(play_exposures(shot)))
    assert np.abs(played - areas).max() <= 1


def test_seeds_choose_part_exposure_and_colours(film):
    shots = [cut(film, seed, recolor=0.5) for seed in range(12)]
    assert len({shot.subframes for shot in shots}) > 3
    assert len({shot.pictures.shape for shot in shots}) > 3
    one, two = (render_clip(5, 3, 32, 40, steps=22, options=options(film)) for _ in range(2))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_films_take_their_share_and_leave_the_scenes_of_other_seeds_alone(film):
    half = options(film, film_share=0.5)
    chosen = [is_film(seed, "train", half) for seed in range(400)]
    assert 150 < sum(chosen) < 250
    seed = chosen.index(False)
    with_films, without = (
        render_clip(seed, 2, 32, 32, steps=8, options=o) for o in (half, scene_options(recolor=0.0))
    )
    np.testing.assert_array_equal(with_films["blur"], without["blur"])


def test_scoring_never_sees_the_films_of_training(film):
    assert not any(is_film(seed, "eval", options(film)) for seed in range(20))


def test_a_folder_stands_for_its_films(film):
    clips = [render_clip(1, 3, 32, 40, options=options(p)) for p in (film, film.parent)]
    np.testing.assert_array_equal(clips[0]["blur"], clips[1]["blur"])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (np.zeros((4, 80, 120, 3), np.uint8), "4 frames"),
        (np.zeros((40, 16, 120, 3), np.uint8), "16 x 120"),
        (np.zeros((40, 80, 120, 3), np.float32), "float32"),
        (np.zeros((40, 80, 120), np.uint8), "wanted a film"),
        (b"", "no readable film"),
        (b"no film", "no readable film"),
    ],
)
def test_an_unusable_film_raises_and_names_itself(tmp_path, content, found):
    path = tmp_path / "bad.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(PhotographError, match=rf"bad\.npy.*{found}"):
        cut(path)


def test_a_folder_without_films_raises_and_names_itself(tmp_path):
    with pytest.raises(PhotographError, match=r"\.npy"):
        cut(tmp_path)


@pytest.mark.parametrize("option", ["photographs", "films"])
def test_training_on_media_that_are_not_there_fails_before_it_starts(option):
    config = default_data_config()
    config.source = "scenes"
    config.scenes.render[option] = ("nowhere/a.file",)
    with pytest.raises(PhotographError, match=r"nowhere/a\.file"):
        train_iterator(config, seed=0)
