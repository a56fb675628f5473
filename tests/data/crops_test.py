import numpy as np
import pytest

from vrtspike_jax.data.augment import Augmentation, View
from vrtspike_jax.data.geometry import Geometry, check_crop, draw_crop, spike_size, whole_frame
from vrtspike_jax.data.loading import LoadClip
from vrtspike_jax.spikes import voxel_counts

FRAMES, STEPS = 3, 16


class PositionSource:
    """A clip whose pixels, of frames and of spikes, say where they are.

    Frame pixel (y, x) of frame t is (y, x, t). Spike pixel (y, x) fires in step k of 16 if bit k of
    y + 256 x is set, so that 16 bins of one step each spell its position.
    """

    def __init__(self, geometry):
        self._geometry = geometry
        (h, w), (hs, ws) = geometry.frame, geometry.spike
        y, x = np.mgrid[:h, :w]
        self._frames = np.stack([np.stack([y, x, 0 * y + t], -1) for t in range(FRAMES)])
        ys, xs = np.mgrid[:hs, :ws]
        code = ys + 256 * xs
        spikes = np.stack([code >> k & 1 for k in range(STEPS)])
        self._spikes = np.repeat(spikes[None], FRAMES, axis=0).astype(np.uint8)

    def __len__(self):
        return 1

    def geometry(self, i):
        return self._geometry

    def name(self, i):
        return "position/0"

    def read(self, i, crop):
        rows, cols = slice(*crop.rows), slice(*crop.cols)
        frames = self._frames[:, rows, cols].astype(np.uint8)
        spikes = self._spikes[:, :, slice(*crop.spike_rows), slice(*crop.spike_cols)]
        return {"blur": frames, "sharp": frames.copy(), "spikes": spikes}


def spike_positions(counts, reverse):
    """(y, x) of each spike pixel, read from counts [h, w, 16]."""
    bits = counts[..., ::-1] if reverse else counts
    code = (bits.astype(int) << np.arange(STEPS)).sum(-1)
    return code % 256, code // 256


@pytest.mark.parametrize(
    ("frame", "spike", "size"),
    [
        ((48, 64), (24, 32), 16),
        ((48, 64), (48, 64), 17),
        ((48, 60), (32, 40), 24),
        ((40, 40), (40, 40), 0),
        ((60, 40), (20, 20), 12),
    ],
)
def test_every_crop_and_view_shows_the_same_field_in_frames_and_spikes(frame, spike, size):
    geometry = Geometry(frame, spike)
    load = LoadClip(PositionSource(geometry), Augmentation(), size, bins=STEPS)
    views = set()
    for seed in range(60):
        clip = load(0, np.random.default_rng(seed))
        np.testing.assert_array_equal(clip["blur"], clip["sharp"])
        times = clip["blur"][:, 0, 0, 2].tolist()
        reverse = times == [2, 1, 0]
        assert reverse or times == [0, 1, 2]
        height, width = clip["blur"].shape[1:3]
        # The centre of every frame pixel, in frame pixels, and the spike pixel that covers it.
        i, j = np.mgrid[:height, :width]
        spikes = clip["spikes"][0]
        rows = (2 * i + 1) * spikes.shape[0] // (2 * height)
        cols = (2 * j + 1) * spikes.shape[1] // (2 * width)
        y, x = spike_positions(spikes, reverse)
        where = clip["blur"][0].astype(int)
        for axis, place in ((0, y), (1, x)):
            middle = (2 * where[..., axis] + 1) * spike[axis]
            # A frame pixel whose middle lies between two spike pixels belongs to either.
            clear = middle % (2 * frame[axis]) != 0
            np.testing.assert_array_equal(
                place[rows, cols][clear], middle[clear] // (2 * frame[axis])
            )
        corner, last = where[0, 0, :2], where[-1, -1, :2]
        views.add((reverse, *(np.sign(last - corner)), where[0, 1, 1] == where[0, 0, 1]))
    # Two directions of time, eight views of a square.
    assert len(views) == 16


def test_every_aligned_position_comes_up():
    geometry = Geometry((20, 26), (10, 13))
    rng = np.random.default_rng(0)
    rows, cols = zip(*((c.rows[0], c.cols[0]) for c in _crops(geometry, 16, rng)), strict=True)
    assert sorted(set(rows)) == [0, 2, 4]
    assert sorted(set(cols)) == [0, 2, 4, 6, 8, 10]


def _crops(geometry, size, rng):
    return [draw_crop(geometry, size, rng) for _ in range(300)]


def test_drawing_takes_the_same_numbers_whatever_is_switched_on():
    after = set()
    for switches in ((False,) * 3, (True,) * 3, (True, False, True)):
        for size in (0, 16):
            rng = np.random.default_rng(5)
            Augmentation(*switches).draw(rng)
            draw_crop(Geometry((32, 32), (16, 16)), size, rng)
            after.add(rng.random())
    assert len(after) == 1


@pytest.mark.parametrize(
    ("switches", "count"),
    [((False, False, False), 1), ((True, False, False), 4), ((False, True, False), 4)],
)
def test_only_what_is_switched_on_is_drawn(switches, count):
    square = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    spikes = np.zeros((1, 2, 4, 4), np.uint8)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        view = Augmentation(*switches).draw(rng)
        seen.add(view.apply(square, square, spikes, 1)["blur"].tobytes())
    assert len(seen) == count
    if switches == (False, True, False):
        turns = {np.ascontiguousarray(np.rot90(square, k, (1, 2))).tobytes() for k in range(4)}
        assert seen == turns


def test_reversed_spikes_are_counted_in_reversed_steps():
    # 7 steps in 3 bins: 3, 2, 2 forwards. Reversing the bins would give 2, 2, 3.
    rng = np.random.default_rng(0)
    spikes = rng.integers(0, 2, (2, 7, 3, 4), dtype=np.uint8)
    frames = rng.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    clip = View(reverse=True).apply(frames, frames, spikes, bins=3)
    for t in range(2):
        backwards = [spikes[1 - t][6 - s] for s in range(7)]
        np.testing.assert_array_equal(clip["spikes"][t], voxel_counts(np.stack(backwards), 3))
        np.testing.assert_array_equal(clip["blur"][t], frames[1 - t])
    assert not np.array_equal(clip["spikes"], voxel_counts(spikes, 3)[::-1, ..., ::-1]), (
        "the case does not tell the two apart"
    )


@pytest.mark.parametrize(
    ("spike", "size", "message"),
    [
        ((24, 32), 50, "frames of height 48, wanted at least crop_size=50"),
        ((24, 32), 15, "multiple of 2 frame pixels"),
        ((32, 40), 16, "multiple of 3 frame pixels"),
    ],
)
def test_crops_that_do_not_fit_are_errors(spike, size, message):
    with pytest.raises(ValueError, match=message):
        check_crop(Geometry((48, 60), spike), size, "seq")


def test_whole_frames_need_no_alignment():
    geometry = Geometry((7, 9), (3, 5))
    check_crop(geometry, 0, "seq")
    crop = draw_crop(geometry, 0, np.random.default_rng(0))
    assert crop == whole_frame(geometry)
    assert crop.shape == ((7, 9), (3, 5))


def test_spike_size_follows_the_scale():
    assert spike_size(720, 1280, (0.5, 0.5)) == (360, 640)
    assert spike_size(720, 1280, (250 / 720, 400 / 1280)) == (250, 400)
