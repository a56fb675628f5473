"""Scoring of clips: the restored frames, the blurred ones, and plain spike reconstructions.

Frames are scored as they would be saved: cut and rounded to 8 bit. A sequence's score is the mean
over its frames, the total the mean over sequences, as for VRT's published figures.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from vrtspike_jax.metrics import psnr, ssim
from vrtspike_jax.spikes import GRAY_WEIGHTS, tfi, tfp, trained_counts

METRICS = ("psnr_rgb", "psnr_y", "ssim_y")
# Titles of the methods that a table may have, in its order.
METHODS = {
    "blurred": "blurred input",
    "tfp": "spikes alone, TFP",
    "tfi": "spikes alone, TFI",
    "restored": "restored",
}
# What an exact copy scores; infinity would spoil means and is not JSON.
HIGHEST_PSNR = 100.0

# (blur uint8 (T, H, W, 3), counts (T, Hs, Ws, K)) of clips of one size -> their restored
# frames, float32 (T, H, W, 3) in 0..1.
Restore = Callable[[list[tuple[np.ndarray, np.ndarray]]], list[np.ndarray]]
Clip = Mapping[str, np.ndarray]
Scores = dict[str, float]


class StoppedError(Exception):
    """Scoring was broken off because the run is to end."""


@dataclasses.dataclass
class Evaluation:
    """Scores of clips.

    Attributes:
        frames: (sequence, method) -> the scores of each frame.
        strips: (sequence, uint8 picture (H, 3 W, 3)): blurred | restored | sharp.
        clips: how many were scored.
    """

    frames: dict[tuple[str, str], list[Scores]] = dataclasses.field(default_factory=dict)
    strips: list[tuple[str, np.ndarray]] = dataclasses.field(default_factory=list)
    clips: int = 0

    @property
    def methods(self) -> list[str]:
        """The methods that were scored, in the order of `METHODS`."""
        return [m for m in METHODS if any(method == m for _, method in self.frames)]

    def sequence(self, name: str, method: str) -> Scores:
        """Mean over the frames of a sequence."""
        return _mean(self.frames[name, method])

    def mean(self, method: str) -> Scores:
        """Mean over sequences."""
        return _mean([_mean(s) for (_, m), s in self.frames.items() if m == method])

    def to_json(self) -> dict[str, Any]:
        """`{"mean": {method: scores}, "sequences": {name: {method: scores}}, ...}`."""
        names = dict.fromkeys(name for name, _ in self.frames)
        return {
            "clips": self.clips,
            "frames": sum(len(s) for (_, m), s in self.frames.items() if m == "blurred"),
            "mean": {method: self.mean(method) for method in self.methods},
            "sequences": {
                name: {m: self.sequence(name, m) for m in self.methods} for name in names
            },
        }

    def table(self) -> Table:
        """A table of the means, a row for each method."""
        table = Table(title=f"{self.clips} held-out clips, mean over frames and sequences")
        table.add_column("frames")
        for title in ("PSNR RGB (dB)", "PSNR Y (dB)", "SSIM Y"):
            table.add_column(title, justify="right")
        for method in self.methods:
            scores = self.mean(method)
            table.add_row(
                METHODS[method],
                f"{scores['psnr_rgb']:.2f}",
                f"{scores['psnr_y']:.2f}",
                f"{scores['ssim_y']:.4f}",
            )
        return table


def evaluate(
    restore: Restore,
    clips: Iterable[tuple[str, Clip]],
    bins: int,
    batch_size: int = 1,
    baselines: bool = False,
    strips: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    trained_steps: int = 0,
) -> Evaluation:
    """Restores and scores clips.

    Args:
        restore: the model under test.
        clips: (sequence, clip) with `blur`, `sharp` uint8 (T, H, W, 3) and `spikes` uint8, raw
            (T, S, Hs, Ws) of 0 and 1; `new` bool (T,) may mark the frames to count.
        bins: time bins K of the voxels that `restore` takes.
        batch_size: how many clips to hand to `restore` at once, where their sizes agree.
        baselines: also score TFP and TFI.
        strips: how many pictures of the first clips' middle frames to keep.
        should_stop: asked before each batch.
        trained_steps: steps an exposure of the camera whose counts `restore` takes; 0: any.

    Raises:
        StoppedError: `should_stop` said so.
        ValueError: there are no clips.
    """
    result = Evaluation()
    for batch in _batches(clips, batch_size):
        if should_stop():
            raise StoppedError
        inputs = [
            (clip["blur"], trained_counts(clip["spikes"], bins, trained_steps)) for _, clip in batch
        ]
        for (name, clip), restored in zip(batch, restore(inputs), strict=True):
            _score_clip(result, name, clip, restored, baselines)
            if len(result.strips) < strips:
                middle = len(restored) // 2
                picture = strip(clip["blur"][middle], restored[middle], clip["sharp"][middle])
                result.strips.append((f"{len(result.strips):02d}_{name}", picture))
    if not result.clips:
        raise ValueError("no clips to score: the evaluation split is empty")
    return result


def _score_clip(
    result: Evaluation, name: str, clip: Clip, restored: np.ndarray, baselines: bool
) -> None:
    blur, sharp = clip["blur"], clip["sharp"]
    candidates = {"blurred": blur, "restored": restored}
    if baselines:
        candidates |= dict(spike_reconstructions(blur, clip["spikes"]))
    # Clips that reach back at a sequence's end show some frames again; they count once.
    new = np.flatnonzero(clip.get("new", np.ones(len(blur), bool)))
    for method, frames in candidates.items():
        scores = [score_frame(frames[i], sharp[i]) for i in new]
        result.frames.setdefault((name, method), []).extend(scores)
    result.clips += 1


def _batches(
    clips: Iterable[tuple[str, Clip]], batch_size: int
) -> Iterator[list[tuple[str, Clip]]]:
    """Neighbouring clips of equal size, at most `batch_size` of them."""
    batch: list[tuple[str, Clip]] = []
    for name, clip in clips:
        same = not batch or all(
            clip[key].shape[-3:] == batch[0][1][key].shape[-3:] for key in ("blur", "spikes")
        )
        if batch and (len(batch) == batch_size or not same):
            yield batch
            batch = []
        batch.append((name, clip))
    if batch:
        yield batch


def score_frame(image: np.ndarray, sharp: np.ndarray) -> Scores:
    """PSNR of RGB and Y, SSIM of Y, of one frame (H, W, 3), uint8 or float in 0..1."""
    return {
        "psnr_rgb": min(psnr(image, sharp, as_uint8=True), HIGHEST_PSNR),
        "psnr_y": min(psnr(image, sharp, y_channel=True, as_uint8=True), HIGHEST_PSNR),
        "ssim_y": ssim(image, sharp, y_channel=True, as_uint8=True),
    }


def spike_reconstructions(blur: np.ndarray, spikes: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What the spikes show by themselves, with the colours of the blurred frame.

    TFP counts the spikes of an eighth of the exposure around its middle, TFI takes the interval at
    the middle. The camera's threshold need not be known: spikes and blurred frame gathered the same
    light, so each reconstruction is scaled to the blurred frame's mean grey value.

    Args:
        blur: uint8 (T, H, W, 3).
        spikes: uint8 (T, S, Hs, Ws) of 0 and 1.

    Yields:
        ("tfp", float32 (T, H, W, 3) in 0..1), then ("tfi", ...).
    """
    window = max(1, spikes.shape[1] // 8)
    yield "tfp", _coloured(blur, tfp(spikes, window=window))
    yield "tfi", _coloured(blur, tfi(spikes))


def strip(blurred: np.ndarray, restored: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """Three frames (H, W, 3), uint8 or float in 0..1, side by side: uint8 (H, 3 W, 3)."""
    return np.concatenate([_to_uint8(frame) for frame in (blurred, restored, sharp)], axis=1)


def write_strips(evaluation: Evaluation, folder: Path) -> None:
    """Writes the kept pictures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in evaluation.strips:
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        cv2.imwrite(str(folder / f"{safe}.png"), picture[..., ::-1])


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Writes a JSON file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(partial, path)


def _coloured(blur: np.ndarray, gray: np.ndarray) -> np.ndarray:
    """The blurred frames with their grey value replaced by `gray` (T, Hs, Ws)."""
    colour = blur.astype(np.float32) / 255
    own = colour @ GRAY_WEIGHTS
    size = blur.shape[2], blur.shape[1]
    large = np.stack([cv2.resize(g, size, interpolation=cv2.INTER_LINEAR) for g in gray])
    large *= own.mean() / max(float(large.mean()), 1e-6)
    return np.clip(colour + (large - own)[..., None], 0, 1)


def _to_uint8(frame: np.ndarray) -> np.ndarray:
    if frame.dtype == np.uint8:
        return frame
    return np.round(np.clip(frame, 0, 1) * 255).astype(np.uint8)


def _mean(scores: list[Scores]) -> Scores:
    return {metric: float(np.mean([s[metric] for s in scores])) for metric in METRICS}
