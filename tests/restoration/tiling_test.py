import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrtspike_jax.restoration.clips import blend_clips, plan_clips
from vrtspike_jax.restoration.tiling import (
    Canvas,
    plan_axis,
    plan_grid,
    restore_tiled,
    stream_tiled,
    window_starts,
)


@st.composite
def _cases(draw):
    height, width = draw(st.integers(1, 260)), draw(st.integers(1, 260))
    tile = draw(st.none() | st.integers(64, 200))
    overlap = draw(st.integers(0, (tile or 64) - 1))
    divisor = draw(st.sampled_from([1, 2, 3]))
    spike = (max(1, height // divisor), max(1, width // divisor))
    return height, width, tile, overlap, spike, draw(st.integers(1, 5))


@settings(max_examples=40, deadline=None)
@given(_cases(), st.integers(0, 2**31))
def test_identity_through_tiling_is_exact(case, seed):
    height, width, tile, overlap, spike, batch = case
    rng = np.random.default_rng(seed)
    frames = rng.random((2, height, width, 3), np.float32)
    voxels = rng.integers(0, 9, (2, *spike, 4)).astype(np.uint8)
    grid = plan_grid((height, width), spike, tile, overlap)
    if grid.resampled:
        voxels = np.log1p(voxels.astype(np.float32))
    shapes = set()

    def identity(x, v):
        shapes.add((x.shape, v.shape))
        return x

    clips = [(frames, voxels), (frames[::-1], voxels)]
    first, second = restore_tiled(identity, clips, grid, batch)
    np.testing.assert_array_equal(first, frames)
    np.testing.assert_array_equal(second, frames[::-1])
    assert len(shapes) == 1, "every call must have the one compiled shape"
    (frame_shape, _), *_ = shapes
    assert frame_shape[2] % 8 == 0 and frame_shape[3] % 8 == 0
    assert min(frame_shape[2:4]) >= 64


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.data())
def test_identity_through_clips_is_exact_and_in_order(count, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    frames = np.random.default_rng(count).random((count, 3, 4, 3), np.float32)
    clips = plan_clips(count, length, overlap)
    assert all(len(clip.frames) == length for clip in clips)
    out = list(blend_clips(clips, (frames[list(clip.frames)] for clip in clips)))
    assert [index for index, _ in out] == list(range(count))
    np.testing.assert_array_equal(np.stack([frame for _, frame in out]), frames)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(64, 300), st.data())
def test_tiles_cover_the_image_with_the_overlap_asked_for(size, tile, data):
    spike = max(1, size // data.draw(st.sampled_from([1, 2, 4])))
    overlap = data.draw(st.integers(0, tile // 2))
    axis = plan_axis(size, spike, tile, overlap)
    covered = np.zeros(axis.padded, bool)
    for start in axis.starts:
        assert start % 8 == 0 and start + axis.tile <= axis.padded
        covered[start : start + axis.tile] = True
    assert covered.all()
    if axis.overlap is not None:  # what is recorded for a later run gives the same tiles
        again = plan_axis(size, spike, axis.tile, axis.overlap)
        assert again == axis
    unit = 128 if axis.spike_starts is not None else 8
    for left, right in zip(axis.starts, axis.starts[1:], strict=False):
        assert left + axis.tile - right >= min(overlap, axis.tile - unit)


def test_a_tile_shows_the_same_place_in_frames_and_voxels():
    # The voxel grid is the frame averaged 2 x 2, so each tile must satisfy the same equation.
    height, width = 180, 330
    frames = np.random.default_rng(0).random((1, height, width, 1), np.float32)
    voxels = frames.reshape(1, height // 2, 2, width // 2, 2, 1).mean((2, 4))
    grid = plan_grid((height, width), (height // 2, width // 2), 96, 24)
    assert len(grid.tiles) > 4
    for tile in grid.tiles:
        x, v = grid.cut_frames(frames, tile), grid.cut_voxels(voxels, tile)
        mean = x.reshape(1, v.shape[1], 2, v.shape[2], 2, 1).mean((2, 4))
        np.testing.assert_allclose(mean, v, rtol=1e-6)


def test_voxels_of_an_unrelated_size_are_sampled_at_frame_pixels():
    # A ramp is reproduced by linear interpolation away from the clamped border.
    height, spike = 211, 101
    ramp = (np.arange(spike) + 0.5) / spike
    voxels = np.broadcast_to(ramp[None, :, None, None], (1, spike, 64, 1))
    grid = plan_grid((height, 64), (spike, 64), 96, 16)
    assert grid.resampled
    with pytest.raises(ValueError, match="wanted normalised"):
        grid.cut_voxels(np.zeros((1, spike, 64, 1), np.uint8), (0, 0))
    for tile in grid.tiles:
        start = grid.rows.starts[tile[0]]
        rows = np.arange(start, start + 96)
        rows = np.where(rows < height, rows, 2 * height - 1 - rows)
        wanted = np.clip((rows + 0.5) / height, ramp[0], ramp[-1])
        np.testing.assert_allclose(grid.cut_voxels(voxels, tile)[0, :, 0, 0], wanted, rtol=1e-5)


def test_blending_equals_the_normalised_weighted_sum():
    grid = plan_grid((150, 170), (75, 85), 96, 32)
    rng = np.random.default_rng(1)
    canvas = Canvas(grid, 1)
    total, weight = np.zeros((150, 170, 3)), np.zeros((150, 170, 1))
    for tile in grid.tiles:
        restored = rng.random((1, grid.rows.tile, grid.cols.tile, 3), np.float32)
        canvas.add(tile, restored)
        top, left = grid.rows.starts[tile[0]], grid.cols.starts[tile[1]]
        w = np.outer(grid.rows.weights(tile[0]), grid.cols.weights(tile[1]))[..., None]
        window = (slice(top, top + 96), slice(left, left + 96))
        h, w_ = total[window].shape[:2]
        total[window] += (w * restored[0])[:h, :w_]
        weight[window] += w[:h, :w_]
    np.testing.assert_allclose(canvas.frames[0], total / weight, atol=2e-6)


def test_weights_are_flat_at_the_border_and_sum_to_one_in_simple_overlaps():
    axis = plan_axis(240, 120, 96, 24)
    total = np.zeros(axis.padded)
    for i, start in enumerate(axis.starts):
        total[start : start + axis.tile] += axis.weights(i)
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert axis.weights(0)[0] == 1 and axis.weights(len(axis.starts) - 1)[-1] == 1


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [(32, 0, "at least 64"), (128, 128, "overlap"), (128, -1, "overlap")],
)
def test_impossible_tiles_are_refused(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        plan_grid((256, 256), (128, 128), tile, overlap)


def test_impossible_clips_are_refused():
    with pytest.raises(ValueError, match="0 frames"):
        plan_clips(0, 5, 2)
    with pytest.raises(ValueError, match="overlap 5"):
        plan_clips(9, 5, 5)
    with pytest.raises(ValueError, match="overlap"):
        window_starts(10, 5, -1)


def test_frames_that_exist_are_left_out_and_the_others_are_unchanged():
    # The model's answer depends on where a frame lies in its clip, so blending matters.
    def restore(clips):
        return [np.float32(c.frames)[:, None, None, None] + 0.01 * c.start for c in clips]

    clips = plan_clips(20, 5, 2)
    whole = {index: frame.item() for index, frame in blend_clips(clips, restore(clips))}
    there = set(range(9)) | {15}
    needed = [clip for clip in clips if not there.issuperset(clip.frames)]
    assert len(needed) < len(clips)
    out = dict(blend_clips(needed, restore(needed), there.__contains__))
    assert list(out) == [i for i in range(20) if i not in there]
    assert all(frame.item() == whole[index] for index, frame in out.items())


def test_batches_go_on_from_clip_to_clip_and_clips_are_taken_late():
    grid = plan_grid((64, 64), (32, 32))
    taken, calls = [], []

    def clips():
        for i in range(5):
            taken.append(i)
            yield np.full((1, 64, 64, 3), i, np.float32), np.zeros((1, 32, 32, 1), np.uint8)

    def apply(frames, voxels):
        calls.append(frames[:, 0, 0, 0, 0].tolist())
        return frames

    out = []
    for restored in stream_tiled(apply, clips(), grid, batch_size=2):
        out.append(restored[0, 0, 0, 0].item())
        assert len(taken) <= len(out) + 4
    assert out == [0, 1, 2, 3, 4]
    assert calls == [[0, 1], [2, 3], [4, 4]]
