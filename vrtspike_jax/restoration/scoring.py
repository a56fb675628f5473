"""The job behind `vrtspike evaluate`: every frame of a split restored, scored and pictured."""

import concurrent.futures
import csv
import dataclasses
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vrtspike_jax.data.clips import FrameStore
from vrtspike_jax.data.geometry import whole_frame
from vrtspike_jax.evaluation import HIGHEST_PSNR, METHODS, spike_reconstructions
from vrtspike_jax.metrics import psnr, ssim
from vrtspike_jax.restoration.restorer import Restorer, from_unit
from vrtspike_jax.restoration.sinks import write_atomically

# As the benchmarks do: cut and rounded to 8 bit. `_float` are the same of unrounded frames.
ROUNDED = ("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y")
METRICS = (*ROUNDED, *(f"{name}_float" for name in ROUNDED))
Lpips = Callable[[np.ndarray, np.ndarray], float]
Scores = dict[str, float]


def score_frame(image: np.ndarray, sharp: np.ndarray, lpips: Lpips | None = None) -> Scores:
    """All metrics of a frame [H,W,3], uint8 or float in [0, 1], against the sharp one.

    PSNR stops at 100 dB, so that exact copies leave the means finite.
    """
    scores = {}
    for rounded, ending in ((True, ""), (False, "_float")):
        if not rounded and image.dtype == np.uint8:
            scores |= {f"{name}_float": scores[name] for name in ROUNDED}
            continue
        for channel, only_y in (("rgb", False), ("y", True)):
            settings = {"y_channel": only_y, "as_uint8": rounded}
            ratio = min(psnr(image, sharp, **settings), HIGHEST_PSNR)
            scores[f"psnr_{channel}{ending}"] = ratio
            scores[f"ssim_{channel}{ending}"] = ssim(image, sharp, **settings)
    if lpips is not None:
        unit = (np.float32(x) / (255 if x.dtype == np.uint8 else 1) for x in (image, sharp))
        scores["lpips"] = lpips(*unit)
    return scores


@dataclasses.dataclass
class FrameScores:
    """One frame: its scores by method, and the share of its spike pixels that fire in a step."""

    sequence: str
    frame: str
    scores: dict[str, Scores]
    firing_rate: float


@dataclasses.dataclass
class Report:
    """Scores of every frame, and which pictures were written.

    Attributes:
      frames: in order of sequences and frames.
      pictures: sequence, frame, and for each kind ("blurred", "restored", "sharp", "tfp") a file
        relative to the folder; `activity`: firing rate of each step of the exposure.
      seconds: wall time after compiling.
    """

    frames: list[FrameScores] = dataclasses.field(default_factory=list)
    pictures: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def methods(self) -> list[str]:
        """What was scored, in the order of tables."""
        return [method for method in METHODS if method in self.frames[0].scores]

    def sequences(self) -> dict[str, dict[str, Any]]:
        """Sequence -> number of frames, and the mean of each method over them."""
        grouped: dict[str, list[FrameScores]] = {}
        for frame in self.frames:
            grouped.setdefault(frame.sequence, []).append(frame)
        return {
            name: {
                "frames": len(frames),
                "mean": {m: _mean([f.scores[m] for f in frames]) for m in self.methods},
            }
            for name, frames in grouped.items()
        }

    def mean(self) -> dict[str, Scores]:
        """Mean over sequences of each method, as VRT's published figures are."""
        sequences = self.sequences().values()
        return {m: _mean([sequence["mean"][m] for sequence in sequences]) for m in self.methods}

    def to_json(self) -> dict[str, Any]:
        """Means, sequences, frames and pictures."""
        return {
            "mean": self.mean(),
            "sequences": self.sequences(),
            "frames": [dataclasses.asdict(frame) for frame in self.frames],
            "pictures": self.pictures,
            "seconds": self.seconds,
        }

    def to_csv(self) -> str:
        """A line for each frame and method."""
        text = io.StringIO()
        metrics = list(next(iter(self.frames[0].scores.values())))
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["sequence", "frame", "method", *metrics, "firing_rate"])
        for frame in self.frames:
            for method, scores in frame.scores.items():
                values = [f"{scores[metric]:.6f}" for metric in metrics]
                rate = f"{frame.firing_rate:.6f}"
                writer.writerow([frame.sequence, frame.frame, method, *values, rate])
        return text.getvalue()


def _mean(scores: list[Scores]) -> Scores:
    return {metric: float(np.mean([s[metric] for s in scores])) for metric in scores[0]}


class _Sequence:
    """Reads the frames of one sequence and scores what needs no model, in the reading threads."""

    def __init__(
        self, store: FrameStore, number: int, restorer: Restorer | None, lpips: Lpips | None
    ):
        self._store, self._number, self._restorer, self._lpips = store, number, restorer, lpips
        self._crop = whole_frame(store.geometry(number))
        self.name = store.sequence_name(number)
        self.waiting: dict[int, tuple[dict[str, np.ndarray], FrameScores]] = {}

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The frame and its counts; the rest waits for `score`."""
        blur, sharp, spikes = self._store.read(self._number, index, self._crop)
        seen = {"blurred": blur}
        seen |= {
            name: frames[0] for name, frames in spike_reconstructions(blur[None], spikes[None])
        }
        name = self._store.frame_name(self._number, index)
        scores = {method: score_frame(image, sharp, self._lpips) for method, image in seen.items()}
        activity = spikes.reshape(len(spikes), -1).mean(1)
        frame = FrameScores(self.name, name, scores, float(activity.mean()))
        self.waiting[index] = (seen | {"sharp": sharp, "activity": activity}, frame)
        counts = self._restorer.count(spikes, blur.shape[:2]) if self._restorer else spikes[:0]
        return blur, counts

    def score(
        self, index: int, restored: np.ndarray | None
    ) -> tuple[dict[str, np.ndarray], FrameScores]:
        """The pictures and all scores of a frame."""
        seen, frame = self.waiting.pop(index)
        if restored is not None:
            seen["restored"] = restored
            frame.scores["restored"] = score_frame(restored, seen["sharp"], self._lpips)
        return seen, frame


def score_split(
    store: FrameStore,
    restorer: Restorer | None,
    folder: Path,
    tiling: dict[str, Any],
    pictures: int = 1,
    lpips: Lpips | None = None,
    progress: Callable[[int, int], None] = lambda finished, total: None,
) -> Report:
    """Restores and scores every frame of a split, a sequence at a time, in bounded memory.

    Args:
      store: the split.
      restorer: the model; None scores the blurred frames and the spike reconstructions alone.
      folder: where pictures go.
      tiling: `tile`, `tile_overlap`, `clip`, `clip_overlap` of `Restorer.plan`.
      pictures: frames of each sequence to write pictures of, evenly spread.
      lpips: also measure LPIPS.
      progress: called with (finished, total) frames.
    """
    report, total = Report(), sum(store.lengths)
    for number, length in enumerate(store.lengths):
        sequence = _Sequence(store, number, restorer, lpips)
        chosen = {round((i + 0.5) * length / pictures - 0.5) for i in range(min(pictures, length))}
        if restorer is None:
            stream = _read_all(sequence, length)
        else:
            geometry = store.geometry(number)
            steps = store.steps(number)
            plan = restorer.plan(geometry.frame, geometry.spike, steps=steps, **tiling)
            stream = restorer.stream(plan, length, sequence.read)
        started = time.perf_counter()
        for index, restored in stream:
            seen, frame = sequence.score(index, restored)
            report.frames.append(frame)
            if index in chosen:
                report.pictures.append(_write_pictures(folder, number, frame, seen))
            progress(len(report.frames), total)
        report.seconds += time.perf_counter() - started
    return report


def _read_all(sequence: _Sequence, length: int):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(sequence.read, i) for i in range(min(4, length))]
        for index in range(length):
            ahead.pop(0).result()
            if index + 4 < length:
                ahead.append(pool.submit(sequence.read, index + 4))
            yield index, None


def _write_pictures(
    folder: Path, number: int, frame: FrameScores, seen: dict[str, np.ndarray]
) -> dict[str, Any]:
    # Files are numbered, not named: a sequence's name may hold anything.
    entry: dict[str, Any] = {"sequence": frame.sequence, "frame": frame.frame, "files": {}}
    entry["activity"] = [round(float(rate), 6) for rate in seen.pop("activity")]
    (folder / "pictures").mkdir(exist_ok=True)
    for kind, image in seen.items():
        stored = image if image.dtype == np.uint8 else from_unit(image, np.uint8)
        _, data = cv2.imencode(".png", np.ascontiguousarray(stored[..., ::-1]))
        safe = "".join(c if c.isalnum() and c.isascii() else "_" for c in frame.frame)
        name = f"pictures/{number:04d}_{safe}_{kind}.png"
        write_atomically(folder / name, data.tobytes())
        entry["files"][kind] = name
    return entry
