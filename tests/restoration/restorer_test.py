import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.restoration import planning
from vrtspike_jax.restoration.inference import to_unit
from vrtspike_jax.restoration.restorer import WHOLE, Restorer
from vrtspike_jax.restoration.tiling import plan_grid
from vrtspike_jax.restoration.voxels import VoxelSettings


def identity(params, frames, voxels):
    return to_unit(frames)


def local(params, frames, voxels):
    """A 9 x 9 mean of the frames plus the spikes of the place: needs what lies around a pixel."""
    frames = to_unit(frames)
    window = (1, 1, 9, 9, 1)
    mean = jax.lax.reduce_window(frames, 0.0, jax.lax.add, window, (1,) * 5, "SAME") / 81
    spikes = jnp.mean(voxels.astype(jnp.float32), -1, keepdims=True)
    return 0.5 * mean + 0.02 * jax.image.resize(spikes, (*frames.shape[:4], 1), "nearest")


def make(step, **kwargs):
    return Restorer(step, {}, VoxelSettings(bins=4), **kwargs)


def sequence(count, height, width, dtype, spike_size):
    rng = np.random.default_rng(count + height)
    if np.issubdtype(dtype, np.floating):
        frames = rng.random((count, height, width, 3)).astype(dtype)
    else:
        frames = rng.integers(0, np.iinfo(dtype).max + 1, (count, height, width, 3), dtype)
    return frames, rng.integers(0, 2, (count, 8, *spike_size)).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    ("count", "size", "spike_size", "settings"),
    [
        (1, (50, 70), (25, 35), {}),
        (7, (100, 130), (50, 65), {"tile": 64, "tile_overlap": 24}),
        (9, (90, 101), (37, 41), {"tile": 72, "tile_overlap": 8, "clip": 4, "clip_overlap": 3}),
        (5, (90, 101), (90, 101), {"tile": WHOLE, "clip": 3, "clip_overlap": 0}),
    ],
)
def test_an_identity_model_returns_the_frames_exactly(dtype, count, size, spike_size, settings):
    frames, spikes = sequence(count, *size, dtype, spike_size)
    restored = make(identity).restore(frames, spikes, **settings)
    assert restored.dtype == frames.dtype
    np.testing.assert_array_equal(restored, frames)


@pytest.mark.parametrize("spike_size", [(40, 48), (37, 41)])  # these share no grid with the frames
@pytest.mark.parametrize(("steps", "brightness"), [(4, 0.5), (8, 1.0), (16, 1.0)])
def test_the_counts_of_a_faster_camera_are_scaled_down(steps, brightness, spike_size):
    def mean_count(params, frames, voxels):
        return jnp.full((*frames.shape[:4], 3), jnp.mean(voxels.astype(jnp.float32)) / 4)

    settings = VoxelSettings(bins=4, log=False, steps=8)
    restorer = Restorer(mean_count, {}, settings)
    frames = np.zeros((3, 80, 96, 3), np.float32)
    spikes = np.ones((3, steps, *spike_size), np.uint8)
    restored = restorer.restore(frames, spikes)
    np.testing.assert_allclose(restored, brightness * 0.5, rtol=1e-5)


@pytest.mark.parametrize("steps", [[1, 1, 1], [2, 3, 2], [3, 8, 16]])
def test_no_bin_is_empty_because_a_camera_has_fewer_steps_than_bins(steps):
    def least_and_most(params, frames, voxels):
        least, most = jnp.min(voxels, axis=-1), jnp.max(voxels, axis=-1)
        found = jnp.stack([least, most, jnp.sum(voxels, axis=-1)], axis=-1).astype(jnp.float32)
        return found / jnp.array([2, 2, 8])

    restorer = Restorer(least_and_most, {}, VoxelSettings(bins=4, log=False, steps=8))
    frames = np.zeros((3, 40, 48, 3), np.float32)
    restored = restorer.restore(frames, [np.ones((s, 40, 48), np.uint8) for s in steps])
    for frame, s in zip(restored, steps, strict=True):
        least, most, total = frame[0, 0] * [2, 2, 8]
        np.testing.assert_allclose(total, min(s, 8), rtol=1e-5)  # each spike counts once
        np.testing.assert_allclose([least, most], min(s, 8) / 4, rtol=0.4)


def test_a_model_trained_with_fewer_steps_than_bins_keeps_its_gaps():
    voxels = VoxelSettings(bins=4, log=False, steps=2)
    counts = voxels.count(np.ones((2, 8, 8), np.uint8), (16, 16))
    np.testing.assert_array_equal(counts[0, 0], [1, 0, 1, 0])


@pytest.mark.parametrize("settings", [{}, {"tile": 64, "tile_overlap": 16}])
def test_the_counts_of_a_finer_camera_are_averaged_to_the_size_of_training(settings):
    seen = []

    def first_bin(params, frames, voxels):
        seen.append(voxels.shape[2:4])
        big = jnp.repeat(jnp.repeat(voxels[..., :1], 2, axis=2), 2, axis=3)
        return jnp.broadcast_to(big / 4, frames.shape)

    voxels = VoxelSettings(bins=2, log=False, spike_scale=(0.5, 0.5))
    restorer = Restorer(first_bin, {}, voxels)
    frames = np.zeros((3, 80, 96, 3), np.float32)
    spikes = np.zeros((3, 8, 80, 96), np.uint8)
    spikes[:, :2, 1::2] = 1  # 2 in the first bin of every other row: 1 on average
    np.testing.assert_allclose(restorer.restore(frames, spikes, **settings), 0.25, rtol=1e-5)
    assert all(rows * 2 in (64, 80) for rows, _ in seen)


@pytest.mark.parametrize("camera", [(40, 48), (45, 53), (20, 24)])
def test_the_counts_of_a_camera_as_in_training_or_coarser_stay(camera):
    voxels = VoxelSettings(bins=2, spike_scale=(0.5, 0.5))
    counts = np.ones((*camera, 2), np.uint8)
    assert voxels.resize(counts, (80, 96)) is counts


def test_tiles_and_clips_agree_with_the_whole():
    frames, spikes = sequence(6, 200, 264, np.float32, (100, 132))
    restorer = make(local)
    whole = restorer.restore(frames, spikes, tile=WHOLE, clip=6)
    tiled = restorer.restore(frames, spikes, tile=96, tile_overlap=32, clip=3, clip_overlap=1)
    error = np.abs(whole - tiled)
    assert error.max() < 2e-3
    assert 10 * np.log10(1 / np.mean(error**2)) > 70


def test_tiles_are_chosen_to_fit_into_the_free_memory(monkeypatch):
    frames, spikes = sequence(3, 320, 400, np.uint8, (160, 200))
    restorer = make(identity, clip_length=3)
    whole = restorer.plan((320, 400), (160, 200), tile=WHOLE)
    assert restorer.plan((320, 400), (160, 200)).grid == whole.grid
    limit = 0.3 * whole.bytes_needed
    monkeypatch.setattr(planning, "memory_limit", lambda devices: limit)
    plan = restorer.plan((320, 400), (160, 200))
    assert len(plan.grid.tiles) > 3
    assert plan.bytes_needed <= limit
    np.testing.assert_array_equal(restorer.restore(frames, spikes), frames)
    monkeypatch.setattr(planning, "memory_limit", lambda devices: 1000)
    with pytest.raises(ValueError, match="64 x 64 takes about"):
        restorer.plan((320, 400), (160, 200))


def test_the_choice_of_tiles_recovers_when_memory_is_not_proportional():
    def measure(grid):
        return 1000 + grid.rows.tile * grid.cols.tile * (1 + (grid.rows.tile > 256))

    choice = planning.choose_grid((720, 1280), (360, 640), None, 150_000, measure)
    assert choice.bytes_needed == measure(choice.grid) <= 150_000
    assert choice.grid != plan_grid((720, 1280), (360, 640))


def test_the_choice_of_tiles_recovers_when_the_compiler_runs_out_of_memory():
    def measure(grid):
        pixels = grid.rows.tile * grid.cols.tile
        return float("inf") if pixels > 100_000 else 10 * pixels

    choice = planning.choose_grid((1080, 1920), (540, 960), 32, 1_500_000, measure)
    assert choice.bytes_needed <= 1_500_000
    assert choice.grid.rows.overlap >= 32 and choice.grid.cols.overlap >= 32


def test_one_shape_is_compiled_whatever_the_number_of_frames():
    traces = []

    def counting(params, frames, voxels):
        traces.append(frames.shape)
        return to_unit(frames)

    restorer = make(counting)
    for count in (3, 5, 11):
        frames, spikes = sequence(count, 100, 130, np.uint8, (50, 65))
        restorer.restore(frames, spikes, tile=64, tile_overlap=16)
    assert len(traces) == 1


def test_a_stream_reads_ahead_a_clip_at_most_and_each_frame_once():
    frames, _ = sequence(40, 64, 64, np.uint8, (32, 32))
    read, written = [], []
    restorer = make(identity)
    plan = restorer.plan((64, 64), (32, 32), clip=4, clip_overlap=2)

    def read_one(index):
        read.append(index)
        return frames[index], np.zeros((32, 32, 4), np.uint8)

    for index, _ in restorer.stream(plan, 40, read_one, readers=1):
        written.append(index)
        assert max(read) - index <= 2 * plan.clip_length
    assert read == list(range(40)) and written == list(range(40))


def test_an_error_while_reading_comes_out_and_stops_the_stream():
    restorer = make(identity)
    plan = restorer.plan((64, 64), (32, 32))

    def broken(index):
        if index == 3:
            raise ValueError("frame 3 is broken")
        return np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32, 4), np.uint8)

    with pytest.raises(ValueError, match="frame 3 is broken"):
        list(restorer.stream(plan, 30, broken))


@pytest.mark.parametrize(
    ("frames", "spikes", "settings", "message"),
    [
        (np.zeros((2, 64, 64), np.uint8), None, {}, "wanted \\[T, H, W, 3\\]"),
        (np.zeros((2, 64, 64, 3), np.int32), None, {}, "int32"),
        (np.full((2, 64, 64, 3), 7.0), None, {}, "0..1"),
        (None, np.zeros((5, 8, 32, 32), np.uint8), {}, "5 exposures"),
        (None, None, {"clip": 0}, "clip of 0 frames"),
        (None, None, {"clip_overlap": 5}, "clip overlap 5"),
        (None, None, {"tile": 32}, "at least 64"),
    ],
)
def test_bad_arguments_say_what_was_wanted(frames, spikes, settings, message):
    frames = np.zeros((2, 64, 64, 3), np.uint8) if frames is None else frames
    spikes = np.zeros((2, 8, 32, 32), np.uint8) if spikes is None else spikes
    with pytest.raises(ValueError, match=message):
        make(identity).restore(frames, spikes, **settings)


_ON_THREE_DEVICES = """
import sys; sys.path.insert(0, {folder!r})
import jax, numpy as np
from restorer_test import identity, local, make, sequence
assert len(jax.local_devices()) == 3
frames, spikes = sequence(7, 100, 130, np.uint8, (50, 65))
for tile in (64, "whole"):
    assert (make(identity).restore(frames, spikes, tile=tile) == frames).all()
frames = frames.astype(np.float32) / 255
one = make(local, devices=jax.local_devices()[:1]).restore(frames, spikes, tile=64)
three = make(local).restore(frames, spikes, tile=64)
print("largest difference", np.abs(one - three).max())
assert np.abs(one - three).max() < 1e-6
"""


def test_tiles_are_spread_over_all_devices_with_the_same_result():
    code = _ON_THREE_DEVICES.format(folder=os.path.dirname(__file__))
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
