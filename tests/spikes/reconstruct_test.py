import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrtspike_jax.spikes import simulate, tfi, tfp


def tfi_by_loops(spikes, moment, threshold):
    steps, height, width = spikes.shape
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            times = np.flatnonzero(spikes[:, y, x])
            before, after = times[times < moment], times[times >= moment]
            if len(times) == 0:
                continue
            if len(times) == 1:
                interval = steps
            elif len(before) and len(after):
                interval = after[0] - before[-1]
            elif len(before):
                interval = max(before[-1] - before[-2], steps - before[-1])
            else:
                interval = max(after[1] - after[0], after[0] + 1)
            result[y, x] = min(threshold / interval, 1.0)
    return result


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 999), st.floats(0.01, 0.9), st.floats(0.3, 3.0))
def test_tfi_equals_a_loop_over_pixels(steps, seed, rate, threshold):
    rng = np.random.default_rng(seed)
    spikes = (rng.random((steps, 4, 5)) < rate).astype(np.uint8)
    moment = int(rng.integers(steps))
    result = tfi(spikes, moment, threshold)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, tfi_by_loops(spikes, moment, threshold), rtol=1e-6)


def test_tfi_of_a_pixel_without_spikes_is_dark_and_of_one_spike_is_one_in_all_steps():
    spikes = np.zeros((20, 1, 3), np.uint8)
    spikes[2, 0, 1] = 1
    spikes[17, 0, 2] = 1
    np.testing.assert_allclose(tfi(spikes)[0], [0, 1 / 20, 1 / 20])


def test_tfi_sees_a_change_that_tfp_averages_away():
    spikes = np.zeros((40, 1, 1), np.uint8)
    spikes[:20:10] = 1  # dark first
    spikes[20::2] = 1  # then bright
    assert tfi(spikes, 5)[0, 0] == pytest.approx(0.1)
    assert tfi(spikes, 35)[0, 0] == pytest.approx(0.5)
    assert tfp(spikes)[0, 0] == pytest.approx(12 / 40)


@pytest.mark.parametrize("threshold", [1.0, 1.7])
def test_both_recover_a_still_picture_from_simulated_spikes(threshold):
    gray = np.linspace(0.1, 0.95, 60, dtype=np.float32).reshape(6, 10)
    spikes = simulate(np.broadcast_to(gray, (400, 6, 10)), threshold, seed=3)
    assert np.abs(tfp(spikes, threshold=threshold) - gray).max() < threshold / 400 + 1e-6
    # An interval is a whole number of steps, so intensity is known up to that.
    interval = threshold / tfi(spikes, threshold=threshold)
    assert np.abs(interval - np.maximum(threshold / gray, threshold)).max() < 1 + 1e-5


def test_tfp_counts_in_a_window_around_the_moment_cut_at_the_ends():
    spikes = (np.arange(20) % 2).astype(np.uint8)[:, None, None]
    spikes[10:] = 1
    assert tfp(spikes)[0, 0] == pytest.approx(15 / 20)
    assert tfp(spikes, 15, 4)[0, 0] == 1
    assert tfp(spikes, 9, 3)[0, 0] == pytest.approx(2 / 3)  # steps 8, 9, 10
    assert tfp(spikes, 0, 4)[0, 0] == pytest.approx(0.5)  # steps 0, 1 of -2..1


def test_intensities_are_cut_at_white():
    spikes = np.ones((9, 2, 2), np.uint8)
    assert (tfp(spikes, threshold=2.0) == 1).all()
    assert (tfi(spikes, threshold=2.0) == 1).all()


@pytest.mark.parametrize("method", [tfp, tfi])
def test_leading_axes_are_recordings_of_their_own(method):
    spikes = (np.random.default_rng(0).random((2, 3, 15, 4, 5)) < 0.3).astype(np.uint8)
    result = method(spikes, 6, threshold=0.8)
    assert result.shape == (2, 3, 4, 5)
    np.testing.assert_array_equal(result[1, 0], method(spikes[1, 0], 6, threshold=0.8))
    np.testing.assert_array_equal(result, method(spikes.astype(bool), 6, threshold=0.8))


@pytest.mark.parametrize("method", [tfp, tfi])
@pytest.mark.parametrize(
    ("shape", "options"),
    [((4, 5), {}), ((0, 4, 5), {}), ((3, 4, 5), {"moment": 3}), ((3, 4, 5), {"threshold": 0})],
)
def test_bad_input_raises(method, shape, options):
    with pytest.raises(ValueError, match="found"):
        method(np.zeros(shape, np.uint8), **options)


def test_a_window_of_no_steps_raises():
    with pytest.raises(ValueError, match="window"):
        tfp(np.zeros((3, 4, 5), np.uint8), window=0)
