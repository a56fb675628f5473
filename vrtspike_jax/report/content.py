"""What a page is about, gathered from an evaluation's or a deblur run's folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vrtspike_jax.evaluation import METHODS

# Kinds of pictures in the order in which they are offered, and what they are called.
KINDS = {
    "blurred": "blurred",
    "restored": "restored",
    "sharp": "sharp (ground truth)",
    "tfp": "spikes, TFP",
    "tfi": "spikes, TFI",
}


@dataclasses.dataclass(frozen=True)
class Clip:
    """One frame to look at.

    Attributes:
      sequence, frame: its names, which may hold anything.
      pictures: kind -> uint8 RGB [H,W,3]; kinds are those of `KINDS`.
      activity: firing rate of each step of the exposure.
      scores: method -> metric -> value; empty without ground truth.
    """

    sequence: str
    frame: str
    pictures: dict[str, np.ndarray]
    activity: list[float]
    scores: dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A value for each frame of a sequence: `lines` maps a method to its values."""

    sequence: str
    frames: list[str]
    lines: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Content:
    """Everything that goes on a page.

    Attributes:
      facts: (name, value) of the run.
      means: method -> metric -> mean over sequences; empty without ground truth.
      sequences: sequence -> (number of frames, means of its methods).
      psnr: a curve for each sequence; empty without ground truth.
      rates: firing rate of each frame, a curve for each sequence.
      clips: frames to look at.
    """

    facts: list[tuple[str, str]]
    means: dict[str, dict[str, float]]
    sequences: dict[str, tuple[int, dict[str, dict[str, float]]]]
    psnr: list[Curve]
    rates: list[Curve]
    clips: list[Clip]


def read(folder: Path, most_clips: int) -> Content:
    """Gathers a page's content.

    Args:
      folder: written by `vrtspike evaluate` or `vrtspike deblur`.
      most_clips: how many frames to show at most, evenly spread.

    Raises:
      ValueError: no such folder, or what it says is missing or damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; wanted one of an evaluation or a deblur run")
    for name, reader in (("metrics.json", _read_evaluation), ("deblur.json", _read_deblur)):
        if (folder / name).is_file():
            try:
                values = json.loads((folder / name).read_text())
                return reader(folder, values, most_clips)
            except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
                raise ValueError(
                    f"{folder / name}: not what this version writes: {error!r}"
                ) from None
    raise ValueError(
        f"{folder}: found neither metrics.json (of vrtspike evaluate) nor deblur.json (of vrtspike "
        "deblur)"
    )


def _read_evaluation(folder: Path, values: dict[str, Any], most_clips: int) -> Content:
    methods = [method for method in METHODS if method in values["mean"]]
    grouped: dict[str, list[dict]] = {}
    for frame in values["frames"]:
        grouped.setdefault(frame["sequence"], []).append(frame)
    psnr, rates = [], []
    for name, frames in grouped.items():
        names = [frame["frame"] for frame in frames]
        lines = {m: [float(f["scores"][m]["psnr_rgb"]) for f in frames] for m in methods}
        psnr.append(Curve(name, names, lines))
        rates.append(Curve(name, names, {"spikes": [float(f["firing_rate"]) for f in frames]}))
    scores = {(f["sequence"], f["frame"]): f["scores"] for f in values["frames"]}
    clips = [
        Clip(
            entry["sequence"],
            entry["frame"],
            {kind: _load(folder, entry["files"][kind]) for kind in KINDS if kind in entry["files"]},
            [float(rate) for rate in entry["activity"]],
            scores[entry["sequence"], entry["frame"]],
        )
        for entry in _spread(values["pictures"], most_clips)
    ]
    sequences = {n: (int(s["frames"]), s["mean"]) for n, s in values["sequences"].items()}
    facts = [
        ("data", f"{values['data']} ({values['split']})"),
        ("checkpoint", values["checkpoint"] or "none: blurred frames and spikes alone"),
        ("frames", str(len(values["frames"]))),
        ("sequences", str(len(sequences))),
        ("time", f"{float(values['seconds']):.1f} s"),
        ("versions", _versions(values["versions"])),
    ]
    means = {method: values["mean"][method] for method in methods}
    return Content(facts, means, sequences, psnr, rates, clips)


def _read_deblur(folder: Path, values: dict[str, Any], most_clips: int) -> Content:
    from vrtspike_jax.restoration.frames import FolderFrames
    from vrtspike_jax.restoration.video import VideoFrames
    from vrtspike_jax.spikes import tfp

    if values["state"] != "done":
        raise ValueError(f"{folder}: the run is not finished; the same command finishes it")
    blur = Path(values["blur"])
    frames = FolderFrames(blur) if blur.is_dir() else VideoFrames(blur)
    clips, rates = [], []
    shown = set(_spread(range(len(values["names"])), most_clips))
    for index, name in enumerate(values["names"]):
        fired = _read_exposure(values, index) if values["spikes"] else np.zeros((0, 1, 1), np.uint8)
        activity = fired.mean((1, 2))
        rates.append(float(activity.mean()) if len(activity) else 0.0)
        if index not in shown:
            continue
        pictures = {
            "blurred": _to_uint8(frames.read(index)),
            "restored": _load(folder, f"{name}{values['suffix']}"),
        }
        if len(fired):
            gray = tfp(fired)
            gray = np.clip(gray / max(float(np.quantile(gray, 0.995)), 1e-3), 0, 1)
            pictures["tfp"] = np.repeat(np.rint(gray * 255).astype(np.uint8)[..., None], 3, -1)
        clips.append(Clip(folder.name, name, pictures, [float(a) for a in activity], {}))
    frames.close()
    summary = values["summary"]
    facts = [
        ("blurred frames", str(blur)),
        ("spikes", _spike_fact(values)),
        ("checkpoint", values["checkpoint"]),
        ("frames", f"{summary['frames']} of {frames.size[0]} x {frames.size[1]}"),
        ("time", f"{summary['seconds']:.1f} s, {summary['frames_per_second']:.2f} frames/s"),
        ("tiles", f"{summary['tiles']} of {summary['tile'][0]} x {summary['tile'][1]}"),
        ("versions", _versions(values["versions"])),
    ]
    curve = Curve(folder.name, list(values["names"]), {"spikes": rates})
    return Content(facts, {}, {}, [], [curve] if values["spikes"] else [], clips)


def _read_exposure(values: dict[str, Any], index: int) -> np.ndarray:
    from vrtspike_jax.spikes import read_dat

    name, first, count = values["windows"][index]
    path = Path(values["spikes"]).with_name(name)
    head = values["head_columns"]
    return read_dat(path, *values["spike_size"], start=first, count=count, head_columns=head)


def _spike_fact(values: dict[str, Any]) -> str:
    if not values["spikes"]:
        return "none: the model takes no spikes"
    height, width = values["spike_size"]
    return f"{Path(values['spikes']).parent}, {height} x {width}"


def _spread(items, most: int) -> list:
    items = list(items)
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / max(1, most - 1))] for i in range(most)]


def _load(folder: Path, name: str) -> np.ndarray:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder}: names the picture {name!r}, wanted one inside the folder")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) if path.is_file() else None
    if image is None:
        raise ValueError(f"{path}: no readable picture")
    return image


def _to_uint8(frame: np.ndarray) -> np.ndarray:
    return frame if frame.dtype == np.uint8 else (frame // 257).astype(np.uint8)


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
