import numpy as np
import pytest
import skimage.data

from vrtspike_jax.scenes.interpolate import InterpolatedFrames

STEP = 8  # pixels from frame to frame


class Video:
    """A window that moves over a photograph; gives each frame once, in order, as a video does."""

    path = "pan"
    size = (96, 128)

    def __init__(self, count=3, dtype=np.uint8):
        self.dtype, self._count, self._next = np.dtype(dtype), count, 0

    def __len__(self):
        return self._count

    def at(self, moved):
        picture = skimage.data.astronaut()[150 : 150 + 96, 100 + moved : 228 + moved]
        return picture.astype(self.dtype) * (257 if self.dtype == np.uint16 else 1)

    def read(self, index):
        assert index >= self._next, "a video is read in order"
        self._next = index + 1
        return self.at(STEP * index)


def psnr(a, b, top=255):
    inner = np.s_[12:-12, 16:-16]
    error = (a[inner].astype(np.float64) - b[inner]) / top
    return -10 * np.log10(np.mean(error**2) + 1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_frames_between_show_things_where_they_were(dtype):
    video = Video(dtype=dtype)
    top = np.iinfo(dtype).max
    frames = InterpolatedFrames(video, 4)
    assert len(frames) == 9 and frames.size == (96, 128)
    read = [frames.read(i) for i in range(9)]
    assert all(frame.dtype == dtype and frame.shape == (96, 128, 3) for frame in read)
    for i, frame in enumerate(read):
        true = video.at(STEP * i // 4)
        if i % 4 == 0:
            np.testing.assert_array_equal(frame, true)
            continue
        first, second = video.at(STEP * (i // 4)), video.at(STEP * (i // 4 + 1))
        faded = first + (second.astype(np.float64) - first) * (i % 4 / 4)
        assert psnr(frame, true, top) > 33
        assert psnr(frame, true, top) > psnr(faded, true, top) + 10


def test_one_frame_for_each_is_the_video_itself():
    frames = InterpolatedFrames(Video(), 1)
    assert len(frames) == 3
    for i in range(3):
        np.testing.assert_array_equal(frames.read(i), Video().at(STEP * i))


def test_a_video_may_be_short():
    assert len(InterpolatedFrames(Video(1), 5)) == 1
    assert len(InterpolatedFrames(Video(0), 5)) == 0


def test_no_frames_at_all_is_refused():
    with pytest.raises(ValueError, match="interpolate 0: wanted 1 or more"):
        InterpolatedFrames(Video(), 0)
