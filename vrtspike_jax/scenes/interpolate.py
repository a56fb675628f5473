"""Frames between the frames of a video, so that motion from one to the next is small.

Published spike data are made so: 240 frames a second are too few for a camera of 20,000 steps.
"""

import functools
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from jaxtyping import Float32, Num, UInt8


class Frames(Protocol):
    """A folder of images or a video; see `vrtspike_jax.restoration`."""

    path: Path
    size: tuple[int, int]
    dtype: np.dtype

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray: ...


class InterpolatedFrames:
    """A video's frames and, from each to the next, `times` - 1 between them, evenly in time.

    Frames are carried along optical flow from both sides and mixed: the nearer one counts more, and
    so does the one whose flow there and back ends where it began. Flow is found up to some tens of
    pixels; what appears or vanishes faster stays a mixture.

    Attributes:
      path, size, dtype: the video's.

    Args:
      frames: the video.
      times: frames to make of each, at least 1.

    Raises:
      ValueError: `times` below 1.

    Source: flow by dense inverse search (Kroeger et al., ECCV 2016); flow from times between frames
    by Super SloMo (Jiang et al., CVPR 2018), eq. 4.
    """

    def __init__(self, frames: Frames, times: int):
        if times < 1:
            raise ValueError(f"interpolate {times}: wanted 1 or more frames for each of the video")
        self.path, self.size, self.dtype = frames.path, frames.size, frames.dtype
        self._count, self._times = len(frames), times
        # A pair's second frame is the first of the next one; a video gives each just once.
        self._read = functools.lru_cache(maxsize=1)(frames.read)
        self._pair = functools.lru_cache(maxsize=1)(
            lambda number: _Pair(self._read(number), self._read(number + 1))
        )

    def __len__(self) -> int:
        return max(0, (self._count - 1) * self._times + 1)

    def read(self, index: int) -> np.ndarray:
        """Frame `index` as RGB, [H,W,3]; indices must not descend."""
        number, part = divmod(index, self._times)
        if part == 0:
            return self._read(number)
        return self._pair(number).at(part / self._times)


class _Pair:
    """Two frames and the flow from each to the other, in pixels as (x, y)."""

    def __init__(self, first: np.ndarray, second: np.ndarray):
        flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow.setFinestScale(0)
        self._dtype = first.dtype
        self._frames = [frame.astype(np.float32) for frame in (first, second)]
        gray = [_gray(frame) for frame in (first, second)]
        there, back = flow.calc(*gray, None), flow.calc(*gray[::-1], None)
        self._flows = there, back
        self._errors = [
            np.linalg.norm(to + _carry(fro, to), axis=-1)
            for to, fro in ((there, back), (back, there))
        ]

    def at(self, time: float) -> Num[np.ndarray, "H W 3"]:
        """The frame at `time`, 0 for the first, 1 for the second."""
        there, back = self._flows
        to_first = time * (time * back - (1 - time) * there)
        to_second = (1 - time) * ((1 - time) * there - time * back)
        total, mixed = np.float32(0), np.float32(0)
        for share, frame, error, flow in zip(
            (1 - time, time), self._frames, self._errors, (to_first, to_second), strict=True
        ):
            weight = (share / (1 + _carry(error, flow)))[..., None]
            # A wide kernel, so that frames between are nearly as sharp as those of the video.
            mixed = mixed + weight * _carry(frame, flow, cv2.INTER_LANCZOS4)
            total = total + weight
        top = np.iinfo(self._dtype).max
        return np.clip(np.rint(mixed / total), 0, top).astype(self._dtype)


def _gray(frame: Num[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    if frame.dtype != np.uint8:
        frame = (frame // 257).astype(np.uint8)
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _carry(
    picture: Float32[np.ndarray, "H W *c"],
    flow: Float32[np.ndarray, "H W 2"],
    kernel: int = cv2.INTER_LINEAR,
) -> Float32[np.ndarray, "H W *c"]:
    """What lies at each pixel plus its flow."""
    rows, cols = (np.arange(side, dtype=np.float32) for side in flow.shape[:2])
    places = flow[..., 0] + cols, flow[..., 1] + rows[:, None]
    return cv2.remap(picture, *places, kernel, borderMode=cv2.BORDER_REPLICATE)
