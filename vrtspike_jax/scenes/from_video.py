"""Blurred frames, sharp frames and spikes from a video whose neighbouring frames differ little.

The protocol of the GoPro + spike set: `exposure` consecutive frames, averaged as they are (sRGB),
make a blurred frame, and the middle one is its ground truth. Each frame and the ones interpolated
between it and the next are the light of `substeps` spike steps; the camera's accumulators run on
from exposure to exposure. A fast camera's video serves as it is; an ordinary one does when frames
are interpolated, or when it is shrunk, until motion between neighbours is about a pixel.
"""

import dataclasses
import fractions
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from vrtspike_jax.scenes.interpolate import Frames, InterpolatedFrames
from vrtspike_jax.spikes import (
    GRAY_WEIGHTS,
    CameraConfig,
    SpikeCamera,
    write_camera_config,
    write_dat,
)

_NOT_NEGATIVE = (
    "gap",
    "dark_current",
    "noise_std",
    "threshold_std",
    "frame_noise",
    "seed",
    "max_frames",
)


@dataclasses.dataclass(frozen=True)
class SimulateOptions:
    """How to expose.

    Attributes:
      interpolate: frames to make of each of the video (`InterpolatedFrames`), before all else;
        at least 1, which makes none.
      exposure: frames in one exposure, odd so that there is a middle one; at least 3.
      gap: frames between exposures, during which the shutter is closed.
      substeps: spike steps from one frame to the next, at least 1.
      shrink: the video's sides are divided by it first (area average), at least 1.
      spike_scale: spike pixels per frame pixel, above 0, at most 1.
      threshold: firing threshold, in units of white times steps.
      dark_current, noise_std, threshold_std: see `SpikeCamera`.
      frame_noise: standard deviation of noise on the blurred frames, in units of white.
      seed: of the accumulators' start and all noise.
      max_frames: blurred frames to make at most; 0: all.
    """

    exposure: int = 11
    gap: int = 0
    substeps: int = 8
    shrink: float = 1.0
    spike_scale: float = 0.5
    threshold: float = 1.0
    dark_current: float = 0.0
    noise_std: float = 0.0
    threshold_std: float = 0.0
    frame_noise: float = 0.0
    seed: int = 0
    max_frames: int = 0
    interpolate: int = 1

    def __post_init__(self):
        if self.exposure < 3 or self.exposure % 2 == 0:
            raise ValueError(f"exposure of {self.exposure} frames: wanted an odd number, 3 or more")
        least = dict.fromkeys(_NOT_NEGATIVE, 0) | {"substeps": 1, "shrink": 1, "interpolate": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not low <= value < float("inf"):  # this also refuses NaN
                raise ValueError(f"{name.replace('_', ' ')} {value}: wanted {low} or more")
        if not 0 < self.threshold < float("inf"):
            raise ValueError(f"threshold {self.threshold}: wanted a positive number")
        if not 0 < self.spike_scale <= 1:
            raise ValueError(f"spike scale {self.spike_scale}: wanted above 0, at most 1")


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What was written. `firing_rate`: share of pixels that fire in a step."""

    folder: str
    frames: int
    size: tuple[int, int]
    spike_size: tuple[int, int]
    steps: int
    firing_rate: float


def simulate_sequence(
    video: Frames,
    folder: Path,
    options: SimulateOptions,
    progress: Callable[[int, int], None] = lambda finished, total: None,
) -> Simulated:
    """Writes `<folder>/{blur,sharp,spike}/00000000.*` and `<folder>/spike/config.yaml`.

    The folder appears under its name only once it is complete.

    Raises:
      ValueError: the folder exists, or the video is too short or, after shrinking, too small.
    """
    if folder.exists():
        raise ValueError(f"{folder}: exists already; nothing is overwritten")
    video = InterpolatedFrames(video, options.interpolate)
    period = options.exposure + options.gap
    total = (len(video) + options.gap) // period
    total = min(total, options.max_frames) if options.max_frames else total
    if total < 1:
        raise ValueError(
            f"{video.path}: found {len(video)} frames, wanted at least the {options.exposure} of "
            "one exposure"
        )
    size, crop, spike_size = _sizes(video, options)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    missing = [above for above in folder.parents if not above.exists()]
    try:
        for part in ("blur", "sharp", "spike"):
            (partial / part).mkdir(parents=True)
        camera = CameraConfig(*spike_size, name=folder.name)
        write_camera_config(partial / "spike", camera)
        fired = 0.0
        exposures = _expose(video, options, size, crop, spike_size, total)
        for index, (blur, sharp, spikes) in enumerate(exposures):
            for part, picture in (("blur", blur), ("sharp", sharp)):
                _write_png(partial / part / f"{index:08d}.png", _to_uint8(picture))
            write_dat(partial / "spike" / f"{index:08d}.dat", spikes)
            fired += float(spikes.mean()) / total
            progress(index + 1, total)
        partial.rename(folder)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for above in missing:  # without the sequence, folders made for it stay empty
            if above.is_dir() and not any(above.iterdir()):
                above.rmdir()
    steps = options.exposure * options.substeps
    return Simulated(str(folder), total, crop, spike_size, steps, fired)


def _write_png(path: Path, picture: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes())


def _sizes(video: Frames, options: SimulateOptions):
    """Size after shrinking, that size cut to whole spike pixels, and the spikes' size."""
    size = tuple(round(side / options.shrink) for side in video.size)
    scale = fractions.Fraction(options.spike_scale).limit_denominator(64)
    crop = tuple(side // scale.denominator * scale.denominator for side in size)
    if min(crop) < 16:
        raise ValueError(
            f"{video.path}: {video.size[0]} x {video.size[1]} pixels shrunk by {options.shrink} "
            f"leave {crop[0]} x {crop[1]}, wanted at least 16 x 16"
        )
    return size, crop, tuple(int(side * scale) for side in crop)


def _expose(
    video: Frames, options: SimulateOptions, size, crop, spike_size, total: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(blurred, sharp, spikes) of each exposure; at most one exposure is held."""
    camera = SpikeCamera(
        *spike_size,
        options.threshold,
        options.seed,
        dark_current=options.dark_current,
        noise_std=options.noise_std,
        threshold_std=options.threshold_std,
    )
    noise = np.random.default_rng([options.seed, 1])
    period, top = options.exposure + options.gap, np.float32(np.iinfo(video.dtype).max)

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        frame = video.read(index).astype(np.float32) / top
        if size != video.size:
            frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
        frame = frame[: crop[0], : crop[1]]
        gray = cv2.resize(frame @ GRAY_WEIGHTS, spike_size[::-1], interpolation=cv2.INTER_AREA)
        return frame, gray

    following = read(0)
    last = min(len(video), total * period) - 1
    for exposure in range(total):
        mean, fired = np.zeros((*crop, 3), np.float32), []
        for offset in range(period):
            index = exposure * period + offset
            if index > last:
                break  # the gap after the last exposure need not be there
            current = following
            if index < last:
                following = read(index + 1)
            spikes = camera.expose(_between(current[1], following[1], options.substeps))
            if offset < options.exposure:
                mean += current[0] / options.exposure
                fired.append(spikes)
            if offset == options.exposure // 2:
                sharp = current[0]
        if options.frame_noise:
            mean += noise.normal(0, options.frame_noise, mean.shape).astype(np.float32)
        yield mean, sharp, np.concatenate(fired)


def _between(gray: np.ndarray, following: np.ndarray, substeps: int) -> np.ndarray:
    """The light of the steps from one frame to the next, [substeps, H, W]."""
    share = (np.arange(substeps, dtype=np.float32) / substeps)[:, None, None]
    return np.clip(gray + share * (following - gray), 0, 1)


def _to_uint8(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)
