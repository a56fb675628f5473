"""What a scene is, before anything is drawn: textures, where they move, and the two cameras.

A description is plain arrays and numbers, so that other rasterisers (on an accelerator, say) can
take it in place of `vrtspike_jax.scenes.raster`.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, UInt8

from vrtspike_jax.scenes.motion import project, random_motion
from vrtspike_jax.scenes.options import CAMERAS, SceneOptions, Stretches
from vrtspike_jax.scenes.shapes import random_mask
from vrtspike_jax.scenes.textures import SPLITS, cut, random_texture, recolored, turned

_PAD = 4


@dataclasses.dataclass(frozen=True)
class Layer:
    """One textured plane.

    Attributes:
      texture: uint8 RGB [h, w, 3] of the background, which goes on mirrored beyond its edges; or
        RGBA [h, w, 4] of an object, with colours multiplied by alpha and a clear border.
      to_texture: homographies [N, 3, 3] from frame pixels (x, y, 1) to texture pixels, one for
        each sub-frame of the clip.
    """

    texture: UInt8[np.ndarray, "h w c"]
    to_texture: Float64[np.ndarray, "N 3 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shot:
    """What the cameras are to record, and how; what there is to see, subclasses add.

    Attributes:
      height, width: of the frames, pixels.
      frames: exposures in the clip (T).
      subframes: pictures of each exposure (R, odd); sub-frame i of exposure k shows the time
        k + (i + 1/2) / R.
      shutter: sub-frames of each exposure that the frame camera sees, odd; the middle ones.
      gain: of the frame camera.
      frame_noise, threshold, dark_current, spike_noise, threshold_spread: see `SceneOptions`.
      noise_seed: seeds the cameras' noise.
      steps: spike steps of each exposure; 0: as many as other clips have.
    """

    height: int
    width: int
    frames: int
    subframes: int
    shutter: int
    gain: float
    frame_noise: float
    threshold: float
    dark_current: float
    spike_noise: float
    threshold_spread: float
    noise_seed: int
    steps: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene(Shot):
    """A clip to be drawn.

    Attributes:
      layers: the background, then objects from back to front.
      light: brightness [T * R] of the scene at each sub-frame, 0..1.
      (others): as in `Shot`.
    """

    layers: tuple[Layer, ...]
    light: Float64[np.ndarray, "N"]


def sample_cameras(
    rng: np.random.Generator, subframes: int, options: SceneOptions
) -> dict[str, int | float]:
    """Draws the fields of `Shot` that are the cameras'."""
    cameras = {name: stretched(rng, getattr(options, name)) for name in CAMERAS}
    cameras["shutter"] = odd(cameras["shutter"] * subframes, subframes)
    cameras["noise_seed"] = int(rng.integers(2**62))
    # Last, so that the choice leaves everything else as it was.
    choices = options.exposure_steps
    return cameras | {"steps": choices[int(rng.integers(len(choices)))] if choices else 0}


def stretched(rng: np.random.Generator, values: Stretches) -> float:
    """Draws from one of the stretches between neighbouring numbers, each as likely; see options."""
    place = rng.uniform(0, len(values) - 1)
    i = min(int(place), len(values) - 2)
    return float(values[i] + (place - i) * (values[i + 1] - values[i]))


def check_shot(seed: int, num_frames: int, height: int, width: int, split: str) -> None:
    """Raises ValueError for sizes below 1 frame or 8 x 8 pixels, a negative seed, or no split."""
    if num_frames < 1 or min(height, width) < 8:
        raise ValueError(
            f"found {num_frames} frames of {height} x {width}, wanted at least 1 of 8 x 8"
        )
    if split not in SPLITS:
        raise ValueError(f"found split {split!r}, wanted one of {SPLITS}")
    if seed < 0:
        raise ValueError(f"found seed {seed}, wanted 0 or more")


def sample_scene(
    seed: int, num_frames: int, height: int, width: int, split: str, options: SceneOptions
) -> Scene:
    """Draws a scene; equal arguments give an equal scene.

    Raises:
      ValueError: sizes below 1 frame or 8 x 8 pixels, a negative seed, or an unknown split.
    """
    check_shot(seed, num_frames, height, width, split)
    rng = np.random.default_rng([SPLITS.index(split), seed])
    speeds = np.exp(rng.uniform(*np.log(np.maximum(options.blur, 1e-3)), options.objects[1] + 1))
    count = int(rng.integers(options.objects[0], options.objects[1] + 1))
    still = count > 0 and rng.uniform() < options.still_camera
    camera = _camera_motion(rng, 0.0 if still else speeds[0], still, num_frames, height, width,
                            options)  # fmt: skip
    motions = [camera]
    patches = []
    for speed in speeds[1 : count + 1]:
        patch, motion = _object(rng, speed, num_frames, height, width, split, options)
        patches.append(patch)
        motions.append(motion)

    subframes = _subframes(motions, num_frames, height, width, options)
    times = (np.arange(num_frames * subframes) + 0.5) / subframes
    to_frame = camera.to_frame(times)
    layers = [_background(rng, to_frame, height, width, split, options)]
    for patch, motion in zip(patches, motions[1:], strict=True):
        middle = (np.array(patch.shape[1::-1]) - 1) / 2
        layers.append(Layer(patch, _inverse(motion.to_frame(times), middle)))
    return Scene(
        height=height,
        width=width,
        frames=num_frames,
        subframes=subframes,
        layers=tuple(layers),
        light=_light(rng, times, options.light_change, num_frames),
        **sample_cameras(rng, subframes, options),
    )


def _camera_motion(
    rng: np.random.Generator,
    speed: float,
    still: bool,
    num_frames: int,
    height: int,
    width: int,
    options: SceneOptions,
):
    factor = 0.0 if still else 1.0
    return random_motion(
        rng,
        speed=speed,
        shake=rng.uniform(*options.shake),
        rotation=factor * np.radians(options.rotation) / 5,
        zoom=factor * options.zoom / 3,
        perspective=factor * options.perspective / 3,
        centre=np.array([width - 1, height - 1]) / 2,
        radius=np.hypot(height, width) / 2,
        duration=num_frames,
    )


def _object(
    rng: np.random.Generator,
    speed: float,
    num_frames: int,
    height: int,
    width: int,
    split: str,
    options: SceneOptions,
):
    """An object's RGBA patch and its motion."""
    share = np.exp(rng.uniform(*np.log(options.object_size)))
    diameter = max(6, round(share * min(height, width)))
    softness = rng.uniform(*options.edge_softness) * (rng.uniform() < 0.6)
    mask = random_mask(rng, diameter, softness)
    if rng.uniform() < options.translucent:
        mask = mask * np.float32(rng.uniform(0.4, 0.9))
    side = len(mask)
    piece = turned(rng, cut(rng, random_texture(rng, split, options, side), side, side))
    piece = recolored(rng, piece, options.recolor)
    patch = np.empty((side, side, 4), np.uint8)
    patch[..., :3] = np.round(piece * mask[..., None])
    patch[..., 3] = np.round(mask * 255)
    motion = random_motion(
        rng,
        speed=speed,
        shake=rng.uniform(*options.shake),
        rotation=np.radians(options.rotation),
        zoom=options.zoom,
        perspective=options.perspective,
        centre=rng.uniform(0.1, 0.9, 2) * [width - 1, height - 1],
        radius=side / np.sqrt(2),
        duration=num_frames,
    )
    return patch, motion


def _background(
    rng: np.random.Generator,
    to_frame: np.ndarray,
    height: int,
    width: int,
    split: str,
    options: SceneOptions,
) -> Layer:
    """The texture that fills the frame, cut to what the camera gets to see of it."""
    seen = project(np.linalg.inv(to_frame), _corners(height, width))
    low = np.floor(seen.min(axis=(0, 1))) - _PAD
    size = np.ceil(seen.max(axis=(0, 1))) + _PAD - low
    # Where the camera travels far, the texture's mirror images carry on.
    texture = random_texture(rng, split, options, max(height, width))
    side = max(size)
    texture = cut(rng, texture, *(int(min(side, have)) for have in texture.shape[:2]))
    texture = turned(rng, texture)
    texture = recolored(rng, texture, options.recolor)
    # `low` lies at the texture's first pixel, so coordinates about the centre shift by -low.
    return Layer(texture, _inverse(to_frame, -low))


def _inverse(to_frame: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """From frame pixels to texture pixels, where `origin` is the layer's own (0, 0)."""
    inverse = np.linalg.inv(to_frame)
    inverse[:, :2] += origin[:, None] * inverse[:, 2:]
    return inverse


def _subframes(
    motions: list, num_frames: int, height: int, width: int, options: SceneOptions
) -> int:
    """Sub-frames of an exposure, so that no point moves more than `max_step` between two."""
    times = np.linspace(0, num_frames, 8 * num_frames + 1)
    fastest = 0.0
    for motion in motions:
        reach = motion.radius / np.sqrt(2)
        corners = reach * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1], [0, 0]])
        places = project(motion.to_frame(times), corners)
        inside = (np.abs(places - [width / 2, height / 2]) < [width, height]).all(-1)
        moved = np.linalg.norm(np.diff(places, axis=0), axis=-1) * inside[1:]
        fastest = max(fastest, 8 * float(moved.max()))
    return odd(fastest / options.max_step, options.max_subframes, least=5)


def odd(value: float, most: int, least: int = 1) -> int:
    """The least odd number of at least `value`, within the odd limits."""
    return int(np.clip(2 * np.ceil((value - 1) / 2) + 1, least, max(least, most)))


def _light(
    rng: np.random.Generator, times: np.ndarray, change: float, num_frames: int
) -> np.ndarray:
    if not change:
        return np.ones(len(times))
    depth, turns = change * rng.uniform(), rng.uniform(0.1, 1.5)
    wave = np.sin(2 * np.pi * turns * times / num_frames + rng.uniform(0, 2 * np.pi))
    return 1 - depth * (0.5 + 0.5 * wave)


def _corners(height: int, width: int) -> np.ndarray:
    return np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], float)
