import numpy as np
import pytest

from vrtspike_jax.spikes import SpikeCamera, integrate_and_fire, simulate, simulate_jax


def random_gray(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def simulate_by_loops(current, threshold, start):
    """One pixel after the other, in float32."""
    spikes = np.zeros(current.shape, np.uint8)
    state = start.copy()
    for y in range(current.shape[1]):
        for x in range(current.shape[2]):
            level = np.float32(start[y, x])
            for t in range(current.shape[0]):
                level = np.float32(level + current[t, y, x])
                if level >= np.float32(threshold):
                    spikes[t, y, x] = 1
                    level = np.float32(level - np.float32(threshold))
            state[y, x] = level
    return spikes, state


def noisy_case():
    rng = np.random.default_rng(5)
    current = rng.random((60, 5, 7), np.float32) + rng.normal(0, 0.3, (60, 5, 7)).astype(np.float32)
    thresholds = rng.uniform(0.7, 1.9, (5, 7)).astype(np.float32)
    return current, thresholds, rng.random((5, 7), np.float32)


@pytest.mark.parametrize("threshold", [0.6, 1.0, 1.73])
def test_firing_equals_a_loop_over_pixels(threshold):
    current, _, start = noisy_case()
    spikes, state = integrate_and_fire(current, threshold, start)
    expected_spikes, expected_state = simulate_by_loops(current, threshold, start)
    assert spikes.dtype == np.uint8
    np.testing.assert_array_equal(spikes, expected_spikes)
    np.testing.assert_array_equal(state, expected_state)


def test_firing_keeps_the_rest_of_the_charge():
    # 0.7 a step and a threshold of 1: 0.7, 1.4 -> 0.4, 1.1 -> 0.1, 0.8, 1.5 -> 0.5 ...
    spikes, state = integrate_and_fire(np.full((5, 1, 1), 0.7, np.float32), 1.0, np.zeros((1, 1)))
    np.testing.assert_array_equal(spikes[:, 0, 0], [0, 1, 1, 0, 1])
    assert state[0, 0] == pytest.approx(0.5, abs=1e-6)


def test_the_jax_form_agrees_bit_for_bit():
    current, thresholds, start = noisy_case()
    for threshold in (1.0, 1.37, thresholds):
        spikes, state = integrate_and_fire(current, threshold, start)
        jax_spikes, jax_state = simulate_jax.integrate_and_fire(current, threshold, start)
        np.testing.assert_array_equal(spikes, np.asarray(jax_spikes))
        np.testing.assert_array_equal(state.view(np.uint32), np.asarray(jax_state).view(np.uint32))


def test_the_jax_form_agrees_over_a_long_recording():
    gray = random_gray((2000, 8, 8), 2)
    start = random_gray((8, 8), 3)
    spikes, state = integrate_and_fire(gray, 1.1, start)
    jax_spikes, jax_state = simulate_jax.integrate_and_fire(gray, 1.1, start)
    np.testing.assert_array_equal(spikes, np.asarray(jax_spikes))
    np.testing.assert_array_equal(state, np.asarray(jax_state))


def test_the_jax_simulator_has_the_rate_of_the_numpy_one():
    import jax

    gray = np.broadcast_to(np.float32(0.3), (200, 20, 20))
    spikes, _ = jax.jit(simulate_jax.simulate)(
        jax.random.key(0), gray, 1.5, dark_current=0.03, noise_std=0.1
    )
    expected = simulate(gray, 1.5, 0, dark_current=0.03, noise_std=0.1)
    assert float(spikes.mean()) == pytest.approx(0.22, abs=0.004)
    assert float(expected.mean()) == pytest.approx(0.22, abs=0.004)


@pytest.mark.parametrize("threshold", [1.0, 2.5])
def test_spikes_follow_the_gray_value(threshold):
    gray = np.linspace(0, 1, 50, dtype=np.float32)[None, :]
    spikes = simulate(np.broadcast_to(gray, (500, 8, 50)), threshold, seed=1)
    assert np.abs(spikes.mean(axis=(0, 1)) - gray[0] / threshold).max() < 1.5 / 500


def test_the_start_phase_is_uniform():
    gray = np.full((10, 100, 100), 0.1, np.float32)
    first = simulate(gray, 1.0, seed=0).argmax(axis=0)
    counts = np.bincount(first.ravel(), minlength=10)
    assert np.abs(counts - 1000).max() < 150


def test_exposing_in_chunks_gives_the_bytes_of_exposing_in_one_piece():
    gray = random_gray((31, 6, 7))
    options = {"dark_current": 0.01, "noise_std": 0.2, "threshold_std": 0.1}
    whole = simulate(gray, 1.3, seed=4, **options)
    camera = SpikeCamera(6, 7, 1.3, 4, **options)
    chunks = [camera.expose(gray[first:last]) for first, last in ((0, 1), (1, 14), (14, 31))]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_the_accumulators_hold_what_has_not_fired_yet():
    gray = random_gray((40, 6, 7))
    camera = SpikeCamera(6, 7, 1.3, 4)
    before = camera.accumulators.copy()
    spikes = camera.expose(gray)
    expected = before + gray.sum(axis=0) - 1.3 * spikes.sum(axis=0)
    np.testing.assert_allclose(camera.accumulators, expected, atol=1e-4)


def test_a_camera_refuses_pictures_of_another_size():
    with pytest.raises(ValueError, match=r"\(6, 8\).*\(6, 7\)"):
        SpikeCamera(6, 7).expose(random_gray((2, 6, 8)))


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    gray = random_gray((30, 6, 6))
    options = {"noise_std": 0.1, "threshold_std": 0.1, "dark_current": 0.01}
    one, two = simulate(gray, 1.0, 7, **options), simulate(gray, 1.0, 7, **options)
    assert one.dtype == np.uint8
    assert one.tobytes() == two.tobytes()
    assert one.tobytes() != simulate(gray, 1.0, 8, **options).tobytes()


def test_dark_current_fires_without_light():
    spikes = simulate(np.zeros((1000, 4, 4), np.float32), 1.0, 0, dark_current=0.05)
    assert spikes.mean() == pytest.approx(0.05, abs=0.002)


def test_noise_changes_when_pixels_fire_but_not_how_often():
    gray = np.full((2000, 8, 8), 0.25, np.float32)
    regular, noisy = simulate(gray, 1.0, 0), simulate(gray, 1.0, 0, noise_std=0.1)
    assert noisy.mean() == pytest.approx(0.25, abs=0.005)

    def interval_spread(spikes):
        return np.std(np.diff(np.flatnonzero(spikes[:, 0, 0])))

    assert interval_spread(regular) == 0
    assert interval_spread(noisy) > 0.3


def test_a_spread_of_thresholds_is_fixed_to_the_pixel():
    gray = np.full((3000, 10, 10), 0.5, np.float32)
    rates = simulate(gray, 1.0, 0, threshold_std=0.1).mean(axis=0)
    assert 0.02 < rates.std() < 0.1
    later = simulate(gray, 1.0, 0, threshold_std=0.1)[1500:].mean(axis=0)
    assert np.corrcoef(rates.ravel(), later.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("gray", "options"),
    [
        (np.full((3, 4, 4), 128.0), {}),
        (np.full((3, 4, 4), np.nan), {}),
        (np.full((3, 4, 4), 1, np.uint8), {}),
        (np.zeros((4, 4)), {}),
        (np.zeros((3, 4, 4)), {"threshold": 0.0}),
        (np.zeros((3, 4, 4)), {"dark_current": -0.1}),
        (np.zeros((3, 4, 4)), {"noise_std": -0.1}),
    ],
)
def test_bad_input_raises(gray, options):
    with pytest.raises(ValueError, match="found"):
        simulate(gray, **options)
