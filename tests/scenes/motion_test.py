import numpy as np
import pytest

from vrtspike_jax.scenes.motion import project, random_motion

STILL = {"speed": 0.0, "shake": 0.5, "rotation": 0.0, "zoom": 0.0, "perspective": 0.0}


def motion(seed=0, duration=5, **overrides):
    return random_motion(
        np.random.default_rng(seed), centre=np.array([30.0, 20.0]), radius=25.0,
        duration=duration, **{**STILL, **overrides},
    )  # fmt: skip


def matrices_one_by_one(motion, time):
    """Turn and zoom, then tilt, then shift, as three matrices."""
    x, y, angle, zoom, tilt_x, tilt_y = motion.curves(np.array([time]))[0]
    turn = np.exp(zoom) * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    turn = np.block([[turn, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])
    tilt = np.eye(3)
    tilt[2, :2] = np.array([tilt_x, tilt_y]) / motion.radius
    place = np.eye(3)
    place[:2, 2] = motion.centre + [x, y]
    return place @ tilt @ turn


@pytest.mark.parametrize("shake", [0.0, 0.5, 1.0])
def test_the_centre_travels_as_far_as_asked(shake):
    for seed in range(5):
        drawn = motion(seed, speed=17.0, shake=shake)
        path = drawn.to_frame(np.linspace(0, 5, 400))[:, :2, 2]
        length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum() / 5
        assert length == pytest.approx(17.0, rel=0.05)


def test_the_centre_is_where_it_should_be_at_some_time():
    for seed in range(5):
        path = motion(seed, speed=40.0).to_frame(np.linspace(0, 5, 4000))[:, :2, 2]
        assert np.linalg.norm(path - [30, 20], axis=1).min() < 0.2


def test_a_path_without_shake_is_straight_and_with_shake_is_not():
    def bend(shake):
        path = motion(1, speed=20.0, shake=shake).to_frame(np.linspace(0, 5, 50))[:, :2, 2]
        return np.linalg.norm(np.diff(path, 2, axis=0), axis=1).max()

    assert bend(0.0) < 1e-9
    assert bend(1.0) > 0.05


def test_homographies_are_turn_then_tilt_then_shift():
    drawn = motion(2, speed=20.0, rotation=0.4, zoom=0.1, perspective=0.3)
    times = np.array([0.0, 1.3, 4.9])
    for time, matrix in zip(times, drawn.to_frame(times), strict=True):
        np.testing.assert_allclose(matrix, matrices_one_by_one(drawn, time), atol=1e-12)


def test_turn_zoom_and_tilt_stay_within_their_limits():
    times = np.linspace(0, 5, 300)
    for seed in range(20):
        drawn = motion(seed, rotation=0.3, zoom=0.08, perspective=0.2)
        curves = drawn.curves(times)
        per_exposure = np.abs(np.diff(curves, axis=0)).sum(0) / 5
        assert per_exposure[2] <= 0.3 * 1.05
        assert per_exposure[3] <= 0.08 * 1.05
        assert np.linalg.norm(curves[:, 4:], axis=1).max() <= 0.2 * 1.1


def test_a_long_clip_does_not_zoom_without_end():
    for seed in range(5):
        zoom = motion(seed, duration=200, zoom=0.1).curves(np.linspace(0, 200, 999))[:, 3]
        assert np.abs(zoom).max() < 0.45


def test_projecting_divides_by_the_third_coordinate():
    homography = np.array([[[2.0, 0, 1], [0, 3, 2], [0.1, 0, 1]]])
    np.testing.assert_allclose(project(homography, np.array([[1.0, 2]])), [[[3 / 1.1, 8 / 1.1]]])
