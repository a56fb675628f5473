import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.data.augment import View
from vrtspike_jax.restoration.voxels import VoxelSettings
from vrtspike_jax.scenes import scene_options
from vrtspike_jax.scenes.bank import load_bank
from vrtspike_jax.scenes.expose_jax import ClipShape, Pick, count_spikes, expose_reels
from vrtspike_jax.scenes.films import Film
from vrtspike_jax.scenes.photographs import PhotographError
from vrtspike_jax.scenes.render import at_steps, expose, gather
from vrtspike_jax.spikes.simulate import integrate_and_fire
from vrtspike_jax.spikes.voxel import bin_edges, trained_counts, voxel_counts

SHAPE = ClipShape(frames=3, size=(24, 24), spike_size=(12, 12), steps=22, bins=6)
# Among the bins, each of 2 steps is shared; 15 gather parts of the 22.
VARIED = dataclasses.replace(SHAPE, choices=(2, 11, 15, 22))


@pytest.fixture(scope="module")
def reels():
    """Two reels of 33 frames that move smoothly in space and time."""
    n, y, x = np.mgrid[:33, :64, :64]
    waves = [
        np.sin(0.35 * x + 0.2 * n * s) + np.cos(0.25 * y - 0.1 * n + c)
        for s in (1, -2)
        for c in (0, 1, 2)
    ]
    pictures = np.stack(waves).reshape(2, 3, 33, 64, 64).transpose(0, 2, 3, 4, 1)
    return np.round(127 + 60 * pictures).astype(np.uint8)


def pick(**changes):
    values = {
        "reel": 1, "first": 4, "exposure": 7, "corner": np.float32([3, 5]), "shrink": 2.0,
        "reverse": False, "mirror_rows": False, "mirror_cols": False, "turn": False,
        "colours": np.eye(3, 4, dtype=np.float32), "shutter": 7, "gain": 1.0, "frame_noise": 0.0,
        "threshold": 1.0, "dark_current": 0.0, "spike_noise": 0.0, "threshold_spread": 0.0,
        "noise_seed": np.uint32(3), "steps": 22,
    }  # fmt: skip
    return Pick(**jax.tree.map(lambda v: jnp.asarray(v)[None], values | changes))


def exposed(reels, shape=SHAPE, **changes):
    clip = expose_reels(jnp.asarray(reels), pick(**changes), shape)
    return {name: np.asarray(value[0]) for name, value in clip.items()}


def on_the_host(reels, shutter=7, gain=1.0, threshold=1.0, steps=0):
    """The clip of `pick()`, cut and exposed with NumPy and OpenCV."""
    film = Film(
        height=24, width=24, frames=3, subframes=7, pictures=reels[1, 4:25, 3:51, 5:53],
        colours=None, shutter=shutter, gain=gain, frame_noise=0.0, threshold=threshold,
        dark_current=0.0, spike_noise=0.0, threshold_spread=0.0, noise_seed=5, steps=steps,
    )  # fmt: skip
    return expose(film, SHAPE.spike_size, SHAPE.steps)


@pytest.mark.parametrize("changes", [{}, {"shutter": 3}, {"gain": 1.2}, {"threshold": 1.7}])
def test_clips_are_those_of_the_host(reels, changes):
    want = on_the_host(reels, **changes)
    clip = exposed(reels, **changes)
    for name in ("blur", "sharp"):
        assert clip[name].shape == want[name].shape
        # OpenCV rounds what it has shrunk, halves upwards, and then again with the gain.
        limit = 2 if "gain" in changes else 1
        assert np.abs(clip[name].astype(int) - want[name]).max() <= limit
    counts = voxel_counts(want["spikes"], SHAPE.bins)
    assert clip["spikes"].shape == counts.shape
    # Phases are drawn anew; a whole clip gathers the same light but for one spike.
    assert np.abs(clip["spikes"].astype(int) - counts).max() <= 1
    assert np.abs(clip["spikes"].sum((0, 3), int) - counts.sum((0, 3), int)).max() <= 1


@pytest.mark.parametrize("steps", VARIED.choices)
def test_clips_of_fewer_steps_are_those_of_the_host(reels, steps):
    want = on_the_host(reels, steps=steps, threshold=1.2)
    assert want["spikes"].shape == (3, steps, 12, 12)
    counts = trained_counts(want["spikes"], SHAPE.bins, SHAPE.steps)
    clip = exposed(reels, VARIED, steps=steps, threshold=1.2)
    assert clip["spikes"].dtype == np.float32 and clip["spikes"].shape == counts.shape
    assert np.abs(clip["spikes"] - counts).max() <= 1
    assert np.abs(clip["spikes"].sum((0, 3)) - counts.sum((0, 3))).max() <= 1 + 1e-5
    if steps == SHAPE.steps:
        plain = exposed(reels, threshold=1.2)
        np.testing.assert_array_equal(clip["spikes"], plain["spikes"])


@pytest.mark.parametrize("steps", VARIED.choices)
def test_voxels_are_those_of_a_recording_of_as_many_steps(steps):
    """The same accumulators, run step by step by the NumPy camera, and counted as for a user."""
    reels = np.random.default_rng(steps).integers(0, 256, (1, 33, 24, 24, 3), np.uint8)
    shape = dataclasses.replace(VARIED, spike_size=(24, 24))
    whole = {"reel": 0, "first": 4, "corner": np.zeros(2, np.float32), "shrink": 1.0}
    seed, threshold = np.uint32(7), np.float32(1.3)
    camera = {"noise_seed": seed, "threshold": threshold, "dark_current": np.float32(0.02)}
    found = exposed(reels, shape, steps=steps, **whole, **camera)["spikes"]

    def phase_of(seed):
        key = jax.random.split(jax.random.key(seed, impl="rbg"), 4)[1]
        return jax.random.uniform(key, shape.spike_size)

    phase = np.asarray(jax.vmap(phase_of)(seed[None])[0])
    gray = (reels[0, 4:25] @ np.array([0.299, 0.587, 0.114]) / 255).astype(np.float32)
    light = at_steps(gray, 3, shape.steps)
    light = gather(light, 3 * steps) + np.float32(0.02)
    recording, _ = integrate_and_fire(light, threshold, phase * threshold)
    settings = VoxelSettings(bins=shape.bins, steps=shape.steps)
    for counts, spikes in zip(found, recording.reshape(3, steps, 24, 24), strict=True):
        want = settings.count(spikes, (24, 24))
        # Float32 sums in another order: a spike may fall on the other side of an edge.
        assert np.isclose(counts, want, rtol=1e-6).mean() > 0.999
        assert want.max() > 0


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_counting_at_the_edges_is_integrating_and_firing(noise):
    rng = np.random.default_rng(0)
    gray = rng.random((110, 32, 32), np.float32) * 0.9
    phase = rng.random((32, 32), np.float32)
    threshold = np.float32(1.1) + 0.2 * rng.random((32, 32), np.float32)
    edges = bin_edges(110, 25)
    draws = rng.standard_normal((25, 32, 32), np.float32) * np.float32(noise)
    light = np.concatenate([np.zeros_like(gray[:1]), np.cumsum(gray, axis=0)])[edges]
    counts = count_spikes(jnp.asarray(light), edges, threshold, phase, draws)
    spread = np.repeat(draws / np.sqrt(np.diff(edges))[:, None, None], np.diff(edges), axis=0)
    spikes, _ = integrate_and_fire(gray + spread, threshold, phase * threshold)
    want = voxel_counts(spikes, 25).transpose(2, 0, 1)
    # Noise can darken a step below nothing; then it matters in which step a spike was due.
    assert (np.asarray(counts) != want).mean() <= (1e-3 if noise else 0)


@pytest.mark.parametrize("gray", [0.02, 0.5, 0.97, 1.0])
def test_noise_makes_bright_pixels_wait_and_not_lose_spikes(gray):
    rng = np.random.default_rng(0)
    phase = rng.random((64, 64), np.float32)
    edges = bin_edges(110, 55)
    draws = 0.1 * rng.standard_normal((55, 64, 64), np.float32)
    light = np.broadcast_to(np.float32(gray) * edges[:, None, None], (56, 64, 64))
    counts = count_spikes(jnp.asarray(light), edges, jnp.ones((64, 64)), phase, draws)
    steps = gray + 0.1 * rng.standard_normal((110, 64, 64), np.float32)
    spikes, _ = integrate_and_fire(steps.astype(np.float32), 1.0, phase)
    # Either differs a little from seed to seed.
    assert abs(np.asarray(counts).sum(0).mean() - spikes.sum(0).mean()) < 0.25


def test_views_are_those_of_the_host(reels):
    plain = exposed(reels)
    for name in ("mirror_rows", "mirror_cols", "turn"):
        changed, view = exposed(reels, **{name: True}), View(**{name: True})
        for part in ("blur", "sharp"):
            np.testing.assert_array_equal(changed[part], view._move(plain[part]))
    changed = exposed(reels, reverse=True)
    np.testing.assert_array_equal(changed["sharp"], plain["sharp"][::-1])
    difference = changed["spikes"].sum(3).astype(int) - plain["spikes"][::-1].sum(3)
    assert np.abs(difference).max() <= 1


def test_clips_of_a_batch_differ_in_noise_and_colour(reels):
    plain = exposed(reels)
    red = np.zeros((3, 4), np.float32)
    red[0, 0] = 1
    assert not exposed(reels, colours=red)["sharp"][..., 1:].any()
    noisy = exposed(reels, frame_noise=0.02)
    deviation = (noisy["blur"].astype(float) - plain["blur"]).std() / 255
    assert 0.015 < deviation < 0.025
    np.testing.assert_array_equal(noisy["sharp"], plain["sharp"])
    assert (exposed(reels, noise_seed=np.uint32(9))["spikes"] != plain["spikes"]).any()


def test_a_bank_holds_films_and_scenes(tmp_path):
    film = np.random.default_rng(0).integers(0, 256, (40, 50, 70, 3), np.uint8)
    np.save(tmp_path / "film.npy", film)
    np.save(tmp_path / "short.npy", film[:20, :40, :40])
    options = scene_options(films=(tmp_path,), generated=1.0)
    sizes = {"exposures": 3, "subframes": 11, "side": 48, "least_side": 24}
    bank = load_bank("train", options, scenes=2, **sizes)
    # The first film in pieces in time, in height and in width.
    assert bank.films == (range(8), range(8, 9)) and bank.scenes == range(9, 11)
    assert bank.pictures.shape == (11, 33, 48, 48, 3)
    assert bank.sizes[:9].tolist() == [[33, 48, 48]] * 8 + [[20, 40, 40]]
    np.testing.assert_array_equal(bank.pictures[0], film[:33, :48, :48])
    np.testing.assert_array_equal(bank.pictures[7], film[7:, 2:, 22:])
    frames = bank.sizes[9:, 0]
    assert (frames % 3 == 0).all()
    assert bank.pictures[9, frames[0] - 1].any()
    again = load_bank("train", options, scenes=2, **sizes)
    np.testing.assert_array_equal(bank.pictures, again.pictures)


def test_a_bank_of_nothing_or_of_small_films_is_refused(tmp_path):
    sizes = {"exposures": 3, "subframes": 11, "side": 48, "least_side": 24}
    with pytest.raises(ValueError, match="neither films nor scenes"):
        load_bank("train", scene_options(), scenes=0, **sizes)
    np.save(tmp_path / "film.npy", np.zeros((8, 50, 70, 3), np.uint8))
    with pytest.raises(PhotographError, match=r"film\.npy: found 8 frames.*at least 9"):
        load_bank("train", scene_options(films=(tmp_path,)), scenes=0, **sizes)
