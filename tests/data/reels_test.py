"""Clips that the accelerator cuts: places within their reels, the same whenever they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.data.config import default_data_config
from vrtspike_jax.data.pipeline import eval_clips, train_iterator
from vrtspike_jax.scenes.expose_jax import Pick, expose_reels
from vrtspike_jax.spikes import trained_counts


@pytest.fixture
def config(tmp_path):
    film = np.random.default_rng(0).integers(0, 256, (40, 30, 50, 3), np.uint8)
    np.save(tmp_path / "film.npy", film)
    config = default_data_config()
    config.source = "scenes"
    config.clip_length, config.crop_size, config.batch_size = 3, 24, 4
    config.voxel.bins = 6
    config.scenes.on_device = True
    config.scenes.reels = 2
    config.scenes.render.films = (str(tmp_path),)
    config.scenes.render.film_exposure = (5, 11)
    config.scenes.render.generated = 1.0
    return config


def picks(iterator, batches):
    found = [next(iterator) for _ in range(batches)]
    iterator.close()
    return {name: np.concatenate([b[name] for b in found]) for name in found[0]}


def test_clips_lie_within_their_reels(config):
    iterator = train_iterator(config, seed=1)
    bank = iterator.source.bank
    found = picks(iterator, 50)
    frames, height, width = bank.sizes[found["reel"]].T
    side = 24 * found["shrink"]
    assert (found["first"] >= 0).all() and (found["corner"] >= 0).all()
    assert (found["first"] + 3 * found["exposure"] <= frames).all()
    assert (found["corner"][:, 0] + side <= height + 1e-3).all()
    assert (found["corner"][:, 1] + side <= width + 1e-3).all()
    assert (found["exposure"] % 2 == 1).all() and found["exposure"].min() >= 5
    assert (found["shutter"] <= found["exposure"]).all()
    share = np.isin(found["reel"], bank.films).mean()
    assert 0.35 < share < 0.65
    for name in ("reverse", "mirror_rows", "mirror_cols", "turn"):
        assert 0 < found[name].mean() < 1


def test_another_cameras_steps_are_refused(config):
    config.steps, config.voxel.steps = 22, 88
    with pytest.raises(ValueError, match=r"voxel\.steps is 88.*config\.data\.steps=22"):
        train_iterator(config, seed=0)


def test_films_are_drawn_equally_often(config, tmp_path):
    np.save(tmp_path / "short.npy", np.zeros((15, 24, 24, 3), np.uint8))
    iterator = train_iterator(config, seed=2)
    long, short = iterator.source.bank.films
    drawn = picks(iterator, 100)["reel"]
    assert len(long) > len(short) == 1
    assert 0.8 < np.isin(drawn, long).sum() / np.isin(drawn, short).sum() < 1.25
    assert set(long) <= set(drawn)


def test_the_stream_goes_on_where_it_was_left(config):
    whole = picks(train_iterator(config, seed=3), 6)
    first = train_iterator(config, seed=3)
    start = [next(first) for _ in range(2)]
    state = first.get_state()
    first.close()
    second = train_iterator(config, seed=3)
    second.set_state(state)
    rest = picks(second, 4)
    for name, value in rest.items():
        joined = np.concatenate([b[name] for b in start] + [value])
        np.testing.assert_array_equal(joined, whole[name], err_msg=name)


def test_picks_become_a_batch(config):
    iterator = train_iterator(config, seed=0)
    source, batch = iterator.source, next(iterator)
    iterator.close()
    fields = Pick(*(batch[name] for name in Pick._fields))
    clips = jax.jit(expose_reels, static_argnums=2)(
        jnp.asarray(source.bank.pictures), fields, source.shape
    )
    found = {name: (array.dtype.name, array.shape) for name, array in clips.items()}
    assert found == {
        "blur": ("uint8", (4, 3, 24, 24, 3)),
        "sharp": ("uint8", (4, 3, 24, 24, 3)),
        "spikes": ("uint8", (4, 3, 12, 12, 6)),
    }
    assert all(array.min() < array.max() for array in clips.values())


def test_clips_draw_their_steps_and_nothing_else_changes(config):
    plain = picks(train_iterator(config, seed=2), 50)
    config.steps, config.scenes.render.exposure_steps = 22, (22, 22, 11, 2)
    iterator = train_iterator(config, seed=2)
    assert iterator.source.shape.choices == (2, 11, 22)
    found = picks(iterator, 50)
    shares = [(found["steps"] == s).mean() for s in (22, 11, 2)]
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.1)
    for name, value in plain.items():
        if name != "steps":
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(("steps", "found"), [(88, 90), (0, 44)])
def test_more_steps_than_those_of_the_config_are_refused(config, steps, found):
    config.steps, config.scenes.render.exposure_steps = steps, (found,)
    wanted = rf"exposure_steps: found {found}, wanted at most config\.data\.steps.* {steps}$"
    for config.scenes.on_device in (True, False):
        with pytest.raises(ValueError, match=wanted):
            train_iterator(config, seed=0)


def test_batches_of_the_host_hold_clips_of_different_steps(config):
    config.steps, config.scenes.render.exposure_steps = 22, (22, 11, 2)
    config.scenes.on_device, config.scenes.height, config.scenes.width = False, 24, 24
    batches = []
    for _ in range(2):
        iterator = train_iterator(config, seed=4)
        batches.append(next(iterator))
        iterator.close()
    spikes = batches[0]["spikes"]
    assert spikes.dtype == np.float32 and spikes.shape == (4, 3, 12, 12, 6)
    np.testing.assert_array_equal(spikes, batches[1]["spikes"])
    source = iterator.source
    for index, counts in zip(batches[0]["index"], spikes, strict=True):
        raw = source[index]["spikes"]
        assert raw.shape[1] in (22, 11, 2)
        want = trained_counts(raw, 6, 22).sum((0, 1, 2, 3))
        np.testing.assert_allclose(counts.sum(), want, rtol=1e-5)  # whatever the view
    assert len({source[i]["spikes"].shape[1] for i in range(12)}) == 3


def test_clips_to_score_have_all_steps_whatever_the_config_draws(config):
    config.steps, config.scenes.render.exposure_steps = 30, (11, 22)
    config.scenes.eval_clips = 3
    assert {clip["spikes"].shape[1] for _, clip in eval_clips(config)} == {30}


def test_whole_frames_cannot_be_cut(config):
    config.crop_size = 0
    with pytest.raises(ValueError, match=r"crop_size is 0.*on_device"):
        train_iterator(config, seed=0)
