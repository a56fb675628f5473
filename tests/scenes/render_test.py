import dataclasses

import cv2
import numpy as np
import pytest

from vrtspike_jax.scenes import (
    draw_exposures,
    expose,
    render_clip,
    sample_scene,
    scene_options,
    spike_shape,
)
from vrtspike_jax.scenes.description import sample_cameras, stretched
from vrtspike_jax.scenes.render import at_steps, gather
from vrtspike_jax.spikes import simulate, tfp

STILL = {"blur": (0.0, 0.0), "rotation": 0, "zoom": 0, "perspective": 0, "objects": (0, 0)}
SMALL = {"num_frames": 3, "height": 40, "width": 56, "steps": 22}


def scene_and_pictures(seed=0, split="train", **options):
    scene = sample_scene(seed, 3, 40, 56, split, scene_options(**options))
    return scene, np.stack(list(draw_exposures(scene)))


def luma(pictures):
    return pictures.astype(np.float32) @ np.float32([0.299, 0.587, 0.114]) / 255


def test_a_clip_has_the_shapes_types_and_values_promised():
    clip = render_clip(3, **SMALL)
    assert set(clip) == {"blur", "sharp", "spikes"}
    assert clip["blur"].shape == clip["sharp"].shape == (3, 40, 56, 3)
    assert clip["spikes"].shape == (3, 22, 20, 28)
    assert all(value.dtype == np.uint8 for value in clip.values())
    assert set(np.unique(clip["spikes"])) == {0, 1}


@pytest.mark.parametrize("split", ["train", "eval"])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(split):
    options = {"spike_noise": (0.01, 0.1), "frame_noise": (0.0, 0.02), "light_change": 0.3}
    one, two, other = (render_clip(seed, split=split, **SMALL, **options) for seed in (5, 5, 6))
    for name in one:
        assert one[name].tobytes() == two[name].tobytes()
        assert one[name].tobytes() != other[name].tobytes()


def test_blur_is_the_mean_of_the_subframes_and_sharp_is_the_middle_one():
    for seed in range(4):
        scene, pictures = scene_and_pictures(seed)
        clip = expose(scene, (20, 28), 22)
        middle = scene.subframes // 2
        np.testing.assert_array_equal(clip["sharp"], pictures[:, middle])
        assert np.abs(clip["blur"] - pictures.mean(axis=1)).max() <= 0.5


def test_a_shorter_shutter_averages_the_middle_subframes():
    scene, pictures = scene_and_pictures(2, shutter=(0.4, 0.4), blur=(30.0, 30.0))
    assert 1 < scene.shutter < scene.subframes
    assert scene.shutter % 2 == 1
    first = (scene.subframes - scene.shutter) // 2
    clip = expose(scene, (20, 28), 22)
    mean = pictures[:, first : first + scene.shutter].mean(axis=1)
    assert np.abs(clip["blur"] - mean).max() <= 0.5


def test_spikes_are_fired_by_the_gray_of_the_subframes():
    scene, pictures = scene_and_pictures(1)
    gray = luma(pictures.reshape(-1, 40, 56, 3))
    gray = gray.reshape(-1, 20, 2, 28, 2).mean(axis=(2, 4))
    clip = expose(scene, (20, 28), scene.subframes)
    rate = clip["spikes"].reshape(-1, 20, 28).mean(axis=0)
    # Up to one spike of the phase, and 8-bit rounding of gray.
    assert np.abs(rate - gray.mean(axis=0)).max() < 1 / len(gray) + 2 / 255


def test_spikes_per_exposure_follow_the_blurred_frame():
    clip = render_clip(4, 3, 64, 64, steps=88)
    gray = luma(clip["blur"]).reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
    assert np.abs(tfp(clip["spikes"]) - gray).max() < 1 / 88 + 0.02


def test_the_accumulator_runs_on_between_exposures():
    scene = sample_scene(0, 4, 16, 16, "train", scene_options(**STILL))
    spikes = expose(scene, (8, 8), 10)["spikes"]
    # Nothing moves, so over the whole clip each pixel is within one spike of its gray value.
    gray = luma(next(iter(draw_exposures(scene)))[0]).reshape(8, 2, 8, 2).mean(axis=(1, 3))
    counts = spikes.reshape(40, 8, 8).sum(axis=0)
    assert np.abs(counts - 40 * gray).max() < 1 + 40 * 2 / 255


@pytest.mark.parametrize(
    ("scale", "size"),
    [
        (0.5, (20, 28)),
        (1, (40, 56)),
        (0.3, (12, 17)),
        ((0.25, 0.5), (10, 28)),
        (2.0, (80, 112)),
    ],
)
def test_any_spike_resolution_sees_the_same_scene(scale, size):
    assert spike_shape(40, 56, scale) == size
    clip = render_clip(7, **{**SMALL, "steps": 60}, spike_scale=scale)
    assert clip["spikes"].shape[2:] == size
    gray = cv2.resize(luma(clip["blur"])[1], size[::-1], interpolation=cv2.INTER_AREA)
    assert np.corrcoef(tfp(clip["spikes"][1]).ravel(), gray.ravel())[0, 1] > 0.97


def test_interpolation_to_steps_is_linear_and_exact_under_time_reversal():
    gray = np.random.default_rng(0).random((3 * 5, 2, 3), np.float32)
    steps = at_steps(gray, 3, 8)
    assert steps.shape == (24, 2, 3)
    np.testing.assert_allclose(steps[::-1], at_steps(gray[::-1], 3, 8), atol=1e-6)
    # Step 4 of an exposure is centred at 4.5 / 8, which is 2.3125 sub-frames in.
    np.testing.assert_allclose(steps[4], gray[2] + 0.3125 * (gray[3] - gray[2]), atol=1e-6)
    assert at_steps(gray, 3, 5) is gray


@pytest.mark.parametrize("blur", [6.0, 20.0, 50.0])
def test_the_camera_path_in_an_exposure_has_the_length_asked_for(blur):
    lengths = []
    for seed in range(6):
        options = scene_options(blur=(blur, blur), rotation=0, zoom=0, perspective=0,
                                objects=(0, 0), still_camera=0)  # fmt: skip
        scene = sample_scene(seed, 4, 64, 64, "train", options)
        path = scene.layers[0].to_texture[:, :2, 2]
        lengths.append(np.linalg.norm(np.diff(path, axis=0), axis=1).sum() / 4)
    np.testing.assert_allclose(lengths, blur, rtol=0.1)


def test_faster_scenes_are_drawn_at_more_subframes():
    slow, fast = (
        sample_scene(1, 3, 64, 64, "train", scene_options(blur=(b, b))).subframes for b in (4, 50)
    )
    assert 5 <= slow < fast <= 61
    assert slow % 2 == fast % 2 == 1


def test_objects_move_independently_of_the_background_and_hide_it():
    options = {"objects": (1, 1), "translucent": 0.0, "still_camera": 1.0, "blur": (12.0, 12.0)}
    moving = 0
    for seed in range(5):
        scene, pictures = scene_and_pictures(seed, **options)
        assert len(scene.layers) == 2
        alone = dataclasses.replace(scene, layers=scene.layers[:1])
        background = np.stack(list(draw_exposures(alone)))
        # The camera stands still: the background is the same picture all the time.
        assert (background == background[:1, :1]).all()
        moving += (pictures[0, 0] != pictures[-1, -1]).mean() > 0.02
    assert moving == 5


def test_an_object_is_laid_over_the_background_with_its_alpha():
    scene, pictures = scene_and_pictures(3, objects=(1, 1), blur=(10.0, 10.0))
    background = np.stack(list(draw_exposures(dataclasses.replace(scene, layers=scene.layers[:1]))))
    layer = scene.layers[1]
    for n in (0, scene.subframes, pictures[:, :, 0, 0, 0].size - 1):
        frame, i = divmod(n, scene.subframes)
        part = cv2.warpPerspective(
            layer.texture.astype(np.float32), layer.to_texture[n], (56, 40),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )  # fmt: skip
        expected = part[..., :3] + (1 - part[..., 3:] / 255) * background[frame, i]
        assert np.abs(pictures[frame, i] - np.clip(expected, 0, 255)).max() < 4


def test_gain_and_noise_change_frames_but_not_spikes():
    plain = render_clip(2, **SMALL)
    bright = render_clip(2, **SMALL, gain=(1.3, 1.3))
    noisy = render_clip(2, **SMALL, frame_noise=(0.05, 0.05))
    np.testing.assert_array_equal(plain["spikes"], bright["spikes"])
    expected = np.clip(1.3 * plain["sharp"].astype(float), 0, 255)
    assert np.abs(bright["sharp"] - expected).max() <= 0.51
    np.testing.assert_array_equal(noisy["sharp"], plain["sharp"])
    inside = (plain["blur"] > 60) & (plain["blur"] < 195)
    difference = noisy["blur"].astype(float)[inside] - plain["blur"][inside]
    assert difference.std() == pytest.approx(0.05 * 255, rel=0.1)


def test_a_change_of_light_dims_frames_and_spikes_alike():
    for seed in range(20):
        scene = sample_scene(seed, 3, 40, 56, "train", scene_options(light_change=1.0, **STILL))
        if np.ptp(scene.light.reshape(3, -1).mean(1)) > 0.2:
            break
    clip = expose(scene, (20, 28), 60)
    light = scene.light.reshape(3, -1).mean(axis=1)
    for signal in (clip["blur"].mean(axis=(1, 2, 3)), clip["spikes"].mean(axis=(1, 2, 3))):
        np.testing.assert_allclose(signal / signal.max(), light / light.max(), atol=0.03)


def test_spike_thresholds_are_drawn_from_their_range():
    drawn = [
        sample_scene(seed, 1, 16, 16, "train", scene_options(threshold=(1.0, 2.0))).threshold
        for seed in range(30)
    ]
    assert 1.0 <= min(drawn) < 1.2
    assert 1.8 < max(drawn) <= 2.0
    low = render_clip(0, **SMALL, threshold=(1.0, 1.0))["spikes"].mean()
    high = render_clip(0, **SMALL, threshold=(2.0, 2.0))["spikes"].mean()
    assert high == pytest.approx(low / 2, rel=0.05)


def test_stretches_of_a_range_are_equally_likely():
    options = scene_options(threshold=(1.0, 1.0, 1.3, 4.0))
    drawn = np.array([
        sample_cameras(np.random.default_rng(seed), 9, options)["threshold"] for seed in range(900)
    ])  # fmt: skip
    shares = [(drawn == 1).mean(), ((drawn > 1) & (drawn <= 1.3)).mean(), (drawn > 1.3).mean()]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.05)
    assert 3.5 < drawn.max() <= 4
    plain = np.random.default_rng(5)
    two = stretched(np.random.default_rng(5), (0.25, 3.0))
    assert two == plain.uniform(0.25, 3.0)  # as ever


@pytest.mark.parametrize("steps", [11, 15])
def test_fewer_steps_show_the_same_exposure_with_fewer_spikes(steps):
    whole, few = (render_clip(3, **SMALL, **o) for o in ({}, {"exposure_steps": (steps,)}))
    for name in ("blur", "sharp"):
        np.testing.assert_array_equal(whole[name], few[name])
    assert few["spikes"].shape[1] == steps < whole["spikes"].shape[1]
    rates = [clip["spikes"].mean((0, 1)) for clip in (whole, few)]
    np.testing.assert_allclose(*rates, atol=2 / few["spikes"][:, :, 0, 0].size)


def test_steps_gather_the_mean_of_the_light_that_they_stand_for():
    light = np.random.default_rng(0).random((6, 2, 3), np.float32)
    np.testing.assert_allclose(gather(light, 2), light.reshape(2, 3, 2, 3).mean(1), rtol=1e-6)
    # In twelfths of the time: each of 6 steps is two, each of 4 is three.
    want = np.repeat(light, 2, axis=0).reshape(4, 3, 2, 3).mean(1)
    np.testing.assert_allclose(gather(light, 4), want, rtol=1e-6)


def test_spikes_come_from_the_public_simulator():
    scene, pictures = scene_and_pictures(1, threshold=(1.4, 1.4), dark_current=(0.02, 0.02))
    gray = np.stack([
        cv2.resize(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float32), (28, 20),
                   interpolation=cv2.INTER_AREA)
        for p in pictures.reshape(-1, 40, 56, 3)
    ]) / np.float32(255)  # fmt: skip
    expected = simulate(gray, 1.4, scene.noise_seed, dark_current=0.02)
    spikes = expose(scene, (20, 28), scene.subframes)["spikes"].reshape(expected.shape)
    assert (spikes != expected).mean() < 1e-3


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": -1},
        {"num_frames": 0},
        {"height": 4},
        {"split": "validation"},
        {"steps": 0},
        {"spike_scale": 0.0},
        {"spike_scale": (0.5, 0.5, 0.5)},
        {"blurr": (1.0, 2.0)},
        {"blur": (9.0, 3.0)},
        {"blur": 9.0},
        {"objects": (1, 2.5)},
        {"threshold": (0.0, 1.0)},
        {"still_camera": 1.5},
        {"max_subframes": 20},
        {"threshold": (1.0, 3.0, 2.0)},
        {"threshold": (1.0,)},
        {"blur": (1.0, 2.0, 3.0)},
        {"options": scene_options(exposure_steps=(44, 90))},
        {"options": scene_options(exposure_steps=(176,))},
    ],
)
def test_bad_arguments_raise(arguments):
    with pytest.raises(ValueError, match="found"):
        render_clip(**{"seed": 0, "num_frames": 1, "height": 16, "width": 16, **arguments})


@pytest.mark.parametrize("steps", [44, (44, 0), (True,), (22.0,), "44"])
def test_steps_are_whole_numbers(steps):
    with pytest.raises(
        ValueError, match=r"scene option exposure_steps: found .*wanted whole numbers"
    ):
        scene_options(exposure_steps=steps)


def test_an_unknown_option_is_named_with_the_nearest_known_one():
    with pytest.raises(ValueError, match="option 'blurr'; did you mean 'blur'"):
        scene_options(blurr=(1.0, 2.0))


def test_options_and_overrides_together_raise():
    with pytest.raises(ValueError, match="both"):
        render_clip(0, options=scene_options(), blur=(1.0, 2.0))


def test_ranges_may_be_lists_as_configs_have_them():
    as_list = render_clip(1, **SMALL, blur=[4.0, 9.0], objects=[1, 2])
    as_tuple = render_clip(1, **SMALL, blur=(4.0, 9.0), objects=(1, 2))
    np.testing.assert_array_equal(as_list["blur"], as_tuple["blur"])
