import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrtspike_jax.spikes import normalize_counts, trained_counts, voxel_counts, voxelize
from vrtspike_jax.spikes.simulate import integrate_and_fire
from vrtspike_jax.spikes.voxel import fire_again


def random_spikes(shape, seed=0):
    return (np.random.default_rng(seed).random(shape) < 0.4).astype(np.uint8)


def count_by_loops(spikes, bins):
    steps, height, width = spikes.shape
    grid = np.zeros((height, width, bins))
    for t in range(steps):
        grid[:, :, math.floor(t * bins / steps)] += spikes[t]
    return grid


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.integers(1, 40), st.integers(0, 99))
def test_counts_equal_a_loop_over_steps(steps, bins, seed):
    spikes = random_spikes((steps, 3, 5), seed)
    counts = voxel_counts(spikes, bins)
    assert counts.dtype == np.uint8
    assert counts.shape == (3, 5, bins)
    np.testing.assert_array_equal(counts, count_by_loops(spikes, bins))


def test_every_spike_is_in_exactly_one_bin():
    spikes = random_spikes((88, 6, 7))
    np.testing.assert_array_equal(voxel_counts(spikes, 32).sum(-1), spikes.sum(0))


def test_fewer_steps_than_bins_leave_bins_empty():
    counts = voxel_counts(np.ones((3, 1, 1), np.uint8), 8)[0, 0]
    # Steps 0, 1, 2 fall into floor(0), floor(8/3) and floor(16/3).
    np.testing.assert_array_equal(counts, [1, 0, 1, 0, 0, 1, 0, 0])


def test_steps_outside_the_exposure_are_in_no_bin():
    spikes = random_spikes((30, 4, 5))
    np.testing.assert_array_equal(
        voxel_counts(spikes, 4, exposure=(7, 19)), count_by_loops(spikes[7:19], 4)
    )


def test_an_exposure_that_begins_before_the_recording_keeps_its_time_scale():
    spikes = np.ones((6, 1, 1), np.uint8)
    # Steps -2..5: the first bin of four spans -2 and -1, which were not recorded.
    counts = voxel_counts(spikes, 4, exposure=(-2, 6))[0, 0]
    np.testing.assert_array_equal(counts, [0, 2, 2, 2])
    counts = voxel_counts(spikes, 4, exposure=(4, 8))[0, 0]
    np.testing.assert_array_equal(counts, [1, 1, 0, 0])


def test_leading_axes_are_exposures_of_their_own():
    spikes = random_spikes((2, 3, 11, 4, 6))
    counts = voxel_counts(spikes, 5)
    assert counts.shape == (2, 3, 4, 6, 5)
    np.testing.assert_array_equal(counts[1, 2], voxel_counts(spikes[1, 2], 5))


@pytest.mark.parametrize("kind", [bool, np.int64, np.float32])
def test_spikes_of_other_types_count_like_bytes(kind):
    spikes = random_spikes((11, 4, 6))
    np.testing.assert_array_equal(voxel_counts(spikes.astype(kind), 5), voxel_counts(spikes, 5))


def test_bins_of_more_than_255_steps_saturate_only_where_bytes_are_asked_for():
    spikes = np.ones((600, 2, 3), np.uint8)
    assert (voxel_counts(spikes, 2) == 255).all()
    np.testing.assert_array_equal(voxelize(spikes, 2, log=False), np.full((2, 3, 2), 300.0))


@pytest.mark.parametrize("log", [True, False])
def test_voxelize_is_counts_with_logarithm_and_normalisation(log):
    spikes = random_spikes((88, 6, 7))
    counts = count_by_loops(spikes, 32)
    expected = ((np.log(1 + counts) if log else counts) - 0.3) / 1.7
    grid = voxelize(spikes, 32, log, mean=0.3, std=1.7)
    assert grid.dtype == np.float32
    np.testing.assert_allclose(grid, expected, atol=1e-6)


def test_voxelize_takes_the_logarithm_unless_told_otherwise():
    spikes = random_spikes((20, 4, 5))
    np.testing.assert_allclose(voxelize(spikes, 4), np.log1p(count_by_loops(spikes, 4)), atol=1e-6)


def test_normalising_stored_counts_equals_voxelizing():
    spikes = random_spikes((88, 6, 7))
    np.testing.assert_array_equal(
        normalize_counts(voxel_counts(spikes, 8), True, 0.5, 2.0),
        voxelize(spikes, 8, mean=0.5, std=2.0),
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: voxel_counts(np.zeros((4, 5), np.uint8), 2),
        lambda: voxel_counts(np.zeros((0, 4, 5), np.uint8), 2),
        lambda: voxel_counts(np.zeros((3, 4, 5), np.uint8), 0),
        lambda: voxel_counts(np.full((3, 4, 5), 0.5), 2),
        lambda: voxel_counts(np.full((3, 4, 5), 2), 2),
        lambda: voxel_counts(np.zeros((3, 4, 5), np.uint8), 2, exposure=(2, 2)),
        lambda: voxelize(np.zeros((3, 4, 5), np.uint8), 2, std=0.0),
    ],
)
def test_bad_input_raises(call):
    with pytest.raises(ValueError, match="found"):
        call()


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
def test_counts_for_a_model_are_those_of_single_steps_added_up(steps):
    """Counting is linear: what each step gives alone, weighed by its spikes."""
    rng = np.random.default_rng(steps)
    spikes = rng.integers(0, 2, (2, steps, 3, 4), np.uint8)
    alone = trained_counts(np.eye(steps, dtype=np.uint8)[..., None], 4, 8)[:, 0]
    want = np.einsum("tshw,sk->thwk", spikes, alone)
    np.testing.assert_allclose(trained_counts(spikes, 4, 8), want, rtol=1e-6)
    np.testing.assert_allclose(alone.sum(1), 1, rtol=1e-6)  # A spike counts once.


def test_a_faster_cameras_spikes_are_those_of_the_models_camera():
    """The same light, 4 times the steps: the one camera's statistics from the other's spikes."""
    light = np.random.default_rng(0).uniform(0, 0.9, (64, 64)).astype(np.float32)
    phase = np.random.default_rng(1).random((64, 64)).astype(np.float32)
    slow, fast = (
        integrate_and_fire(np.broadcast_to(light, (n, 64, 64)), 1.0, phase)[0] for n in (88, 352)
    )
    found, want = trained_counts(fast, 88, 88), voxel_counts(slow, 88)
    assert found.dtype == np.uint8 and found.max() == 1
    # At no time is more than half a spike between what was gathered and what was fired.
    gathered = np.cumsum(voxel_counts(fast, 88), axis=-1) / 4
    assert np.abs(np.cumsum(found, axis=-1, dtype=float) - gathered).max() <= 0.5
    # Pixels fire apart, save for their first spike, and none fires in bursts.
    bright = light > 0.4
    for counts in (found, want):
        assert counts[bright][:, 8:].mean(axis=0).std() < 0.03
    gaps = [np.diff(np.flatnonzero(c)).std() for c in found[bright]]
    assert np.mean(gaps) < 0.6


def test_averages_of_a_finer_cameras_counts_are_fired_again():
    counts = np.array([[[0.25, 0.125, 0.5, 1.5, 0.75], [0.75, 0.5, 0.5, 0.0, 0.25]]])
    fired = fire_again(counts)
    assert fired.dtype == np.uint8
    assert fired.tolist() == [[[0, 0, 1, 1, 1], [1, 0, 1, 0, 0]]]
    assert fire_again(counts, 0.5).tolist() == [[[0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]]
    whole = np.random.default_rng(0).integers(0, 9, (4, 5, 6))
    np.testing.assert_array_equal(fire_again(whole), whole)
    np.testing.assert_array_equal(fire_again(whole * 1000)[..., 1:].max(), 255)


def test_counts_for_a_model_of_unknown_exposures_stay():
    spikes = np.ones((3, 2, 2), np.uint8)
    np.testing.assert_array_equal(trained_counts(spikes, 8, 0), voxel_counts(spikes, 8))
