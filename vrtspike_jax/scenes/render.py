"""From a scene or a film to what the cameras deliver: blurred and sharp frames, and spikes."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from vrtspike_jax.scenes.description import Shot, sample_scene
from vrtspike_jax.scenes.films import Film, is_film, play_exposures, sample_film
from vrtspike_jax.scenes.options import SceneOptions, scene_options
from vrtspike_jax.scenes.raster import draw_exposures
from vrtspike_jax.spikes.simulate import simulate


def render_clip(
    seed: int,
    num_frames: int = 5,
    height: int = 64,
    width: int = 64,
    spike_scale: float | tuple[float, float] = 0.5,
    steps: int = 88,
    split: str = "train",
    *,
    options: SceneOptions | None = None,
    **overrides: object,
) -> dict[str, np.ndarray]:
    """Renders a clip of a moving scene with exact ground truth.

    Each blurred frame is the average of the sub-frames of its exposure, its ground truth is the
    middle one. A pixel of the spike camera integrates the gray of the frame (0.299 R + 0.587 G +
    0.114 B), averaged over its area; exposures follow each other without a gap, and accumulators
    run on from one to the next.

    Args:
      seed: which clip, 0 or more. The same arguments give the same bytes (for one version of
        OpenCV, NumPy and scikit-image).
      num_frames: exposures, T.
      height, width: of the frames, pixels; at least 8.
      spike_scale: spike pixels per frame pixel; one number or (vertical, horizontal).
      steps: spike steps an exposure, S, where `options.exposure_steps` draws no other number.
      split: "train" or "eval"; these share no seeds, photographs or generated textures.
      options: what scenes look like; None takes the defaults.
      **overrides: fields of `SceneOptions` to change.

    Returns:
      `blur` and `sharp` uint8 [T, H, W, 3] RGB, `spikes` uint8 0 or 1 [T, S, Hs, Ws].

    Raises:
      ValueError: a size, a split, or an option that makes no sense, or an unreadable photograph.
    """
    if options is None:
        options = scene_options(**overrides)
    elif overrides:
        raise ValueError("found both options and overrides, wanted one of them")
    if steps < 1:
        raise ValueError(f"found {steps} steps, wanted at least 1")
    options.check_exposures(steps)
    spike_size = spike_shape(height, width, spike_scale)
    sample = sample_film if is_film(seed, split, options) else sample_scene
    return expose(sample(seed, num_frames, height, width, split, options), spike_size, steps)


def spike_shape(
    height: int, width: int, spike_scale: float | tuple[float, float]
) -> tuple[int, int]:
    """Spike pixels (Hs, Ws) of frames of height x width."""
    pair = (spike_scale, spike_scale) if np.isscalar(spike_scale) else tuple(spike_scale)
    if len(pair) != 2 or not all(0 < scale <= 4 for scale in pair):
        raise ValueError(f"found spike scale {spike_scale}, wanted one or two numbers of 0 to 4")
    return max(1, round(height * pair[0])), max(1, round(width * pair[1]))


def expose(shot: Shot, spike_size: tuple[int, int], steps: int) -> dict[str, np.ndarray]:
    """Shows a scene or a film to both cameras; see `render_clip` for what comes back.

    Where the shot says so, the spike camera has fewer steps, each of which gathers the mean of the
    light of those, and parts of those, that it stands for.
    """
    pictures_of = play_exposures if isinstance(shot, Film) else draw_exposures
    blur = np.empty((shot.frames, shot.height, shot.width, 3), np.uint8)
    sharp = np.empty_like(blur)
    gray = np.empty((shot.frames * shot.subframes, *spike_size), np.float32)
    rng = np.random.default_rng([shot.noise_seed, 1])
    for k, pictures in enumerate(pictures_of(shot)):
        first = (shot.subframes - shot.shutter) // 2
        blur[k] = _develop(pictures[first : first + shot.shutter], shot, rng)
        sharp[k] = _developed(pictures[shot.subframes // 2], shot.gain)
        for i, picture in enumerate(pictures):
            _gray(picture, gray[k * shot.subframes + i])
    light, fired = at_steps(gray, shot.frames, steps), shot.steps or steps
    if fired < steps:
        light = gather(light, shot.frames * fired)
    spikes = simulate(
        light,
        shot.threshold,
        shot.noise_seed,
        dark_current=shot.dark_current,
        noise_std=shot.spike_noise,
        threshold_std=shot.threshold_spread,
    )
    return {
        "blur": blur,
        "sharp": sharp,
        "spikes": spikes.reshape(shot.frames, fired, *spike_size),
    }


def at_steps(
    gray: Float32[np.ndarray, "N H W"], frames: int, steps: int
) -> Float32[np.ndarray, "M H W"]:
    """Interpolates N = frames x R sub-frames to frames x steps spike steps, linearly in time.

    Both are centred in equal parts of an exposure, so that playing a clip backwards is exact.
    """
    subframes = len(gray) // frames
    if subframes == steps:
        return gray
    places = (np.arange(frames * steps) + 0.5) * (subframes / steps) - 0.5
    places = np.clip(places, 0, len(gray) - 1)
    before = np.minimum(places.astype(int), max(len(gray) - 2, 0))
    after = np.minimum(before + 1, len(gray) - 1)
    share = (places - before).astype(np.float32)[:, None, None]
    result = gray[after] - gray[before]
    result *= share
    result += gray[before]
    return result


def gather(light: Float32[np.ndarray, "N H W"], steps: int) -> Float32[np.ndarray, "M H W"]:
    """The mean light of each of so many equal parts of the time of N steps."""
    edges = np.linspace(0, len(light), steps + 1)
    step = np.arange(len(light))
    parts = np.minimum(edges[1:, None], step + 1) - np.maximum(edges[:-1, None], step)
    shares = np.maximum(parts, 0).astype(np.float32) * np.float32(steps / len(light))
    return np.tensordot(shares, light, 1)


def _gray(picture: UInt8[np.ndarray, "H W 3"], out: Float32[np.ndarray, "Hs Ws"]) -> None:
    """Gray in 0..1, averaged over the area of each spike pixel."""
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    size = out.shape[::-1]
    if gray.shape != out.shape:
        shrinks = out.shape[0] <= gray.shape[0] and out.shape[1] <= gray.shape[1]
        # In float, as rounding to 8 bit twice would band smooth areas.
        gray = cv2.resize(
            gray.astype(np.float32),
            size,
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        )
    np.multiply(gray, np.float32(1 / 255), out=out)


def _develop(
    pictures: UInt8[np.ndarray, "R H W 3"], shot: Shot, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """The blurred frame: the mean of what the shutter let in, times gain, with noise."""
    total = cv2.reduce(
        pictures.reshape(len(pictures), -1), 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S
    ).reshape(pictures.shape[1:])
    if shot.gain == 1 and not shot.frame_noise:
        # Rounded mean in whole numbers.
        return ((total + len(pictures) // 2) // len(pictures)).astype(np.uint8)
    mean = total * np.float32(shot.gain / len(pictures))
    if shot.frame_noise:
        noise = rng.standard_normal(mean.shape, np.float32)
        # A camera cuts off at white before it reads out, so noise comes last.
        mean = np.minimum(mean, 255) + noise * np.float32(255 * shot.frame_noise)
    return np.clip(np.round(mean), 0, 255).astype(np.uint8)


def _developed(picture: UInt8[np.ndarray, "H W 3"], gain: float) -> UInt8[np.ndarray, "H W 3"]:
    return picture if gain == 1 else cv2.convertScaleAbs(picture, alpha=gain)
