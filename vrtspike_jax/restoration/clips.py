"""Overlapping clips in time: any number of frames through a model that sees `length` at once.

A frame that several clips restore is their running weighted mean (see `tiling`), and is handed on
as soon as no later clip covers it, so that memory holds one clip whatever the number of frames.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float32

from vrtspike_jax.restoration.tiling import cosine_rise, window_starts


@dataclasses.dataclass(frozen=True)
class Clip:
    """One run of the model.

    Attributes:
      start: the first frame.
      frames: indices of the frames to feed, `length` of them. A sequence shorter than a clip is
        mirrored in time, so that indices may repeat.
      weights: weight of each fed frame; 0 for the mirrored ones.
      final: how many leading frames of the sequence are finished once this clip is blended.
    """

    start: int
    frames: tuple[int, ...]
    weights: tuple[float, ...]
    final: int


def plan_clips(num_frames: int, length: int, overlap: int) -> tuple[Clip, ...]:
    """Lays clips of `length` frames over a sequence; neighbours share at least `overlap` frames.

    Raises:
      ValueError: for an empty sequence or an overlap not in [0, length).
    """
    if num_frames < 1:
        raise ValueError("0 frames to restore: wanted at least 1")
    if not 0 <= overlap < length:
        raise ValueError(f"clip overlap {overlap}: wanted 0 <= overlap < clip length ({length})")
    if num_frames <= length:
        indices = np.pad(np.arange(num_frames), (0, length - num_frames), mode="symmetric")
        weights = (np.arange(length) < num_frames).astype(float)
        return (Clip(0, tuple(indices.tolist()), tuple(weights.tolist()), num_frames),)
    starts = window_starts(num_frames, length, overlap)
    clips = []
    for i, start in enumerate(starts):
        weights = np.ones(length)
        if i > 0:
            shared = starts[i - 1] + length - start
            weights[:shared] *= cosine_rise(shared)
        if i + 1 < len(starts):
            shared = start + length - starts[i + 1]
            weights[length - shared :] *= cosine_rise(shared)[::-1]
        final = starts[i + 1] if i + 1 < len(starts) else num_frames
        clips.append(
            Clip(start, tuple(range(start, start + length)), tuple(weights.tolist()), final)
        )
    return tuple(clips)


def blend_clips(
    clips: Iterable[Clip],
    restored: Iterable[Float32[np.ndarray, "T H W C"]],
    done: Callable[[int], bool] = lambda index: False,
) -> Iterator[tuple[int, Float32[np.ndarray, "H W C"]]]:
    """Yields (frame index, frame) in order, each as soon as no later clip covers it.

    Args:
      clips: from `plan_clips`; those whose frames are all done may be left out.
      restored: the restored frames of each clip, in the same order.
      done: frames that are not to be yielded.
    """
    held: dict[int, tuple[np.ndarray, float]] = {}
    for clip, frames in zip(clips, restored, strict=True):
        _add(held, clip, frames)
        for index in sorted(i for i in held if i < clip.final):
            frame = held.pop(index)[0]
            if not done(index):
                yield index, frame


def _add(held: dict[int, tuple[np.ndarray, float]], clip: Clip, restored: np.ndarray) -> None:
    for index, weight, new in zip(clip.frames, clip.weights, restored, strict=True):
        if weight == 0:
            continue
        if index not in held:
            held[index] = (new, weight)
            continue
        kept, total = held[index]
        share = np.float32(weight / (total + weight))
        held[index] = (kept + share * (new - kept), total + weight)
