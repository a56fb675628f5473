"""What rendered scenes may look like: ranges from which each clip draws."""

import dataclasses
import os

from vrtspike_jax.names import suggestion

Range = tuple[float, float]
# Numbers from least to most, 2 or more: each stretch between neighbours is as likely as any other,
# and even within. (1, 1.3) is a plain range; (1, 1, 1.3, 4) is 1 in a third of the clips, and
# above 1.3 in another.
Stretches = tuple[float, ...]
# Options that are `Stretches`.
CAMERAS = (
    *("shutter", "gain", "frame_noise"),
    *("threshold", "dark_current", "spike_noise", "threshold_spread"),
)
_PATHS = ("photographs", "eval_photographs", "films", "eval_films")


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """Ranges (least, most) of what `render_clip` draws for each clip.

    The defaults follow the protocol of the GoPro + spike set in everything that concerns the
    cameras: the shutter is open all the time, gray levels drive the spikes as they are, the firing
    threshold is 1, and nothing is noisy. Ranges of the cameras may have more than two numbers, see
    `Stretches`.
    """

    # Motion: length of the path of a point in one exposure, in frame pixels; drawn on a log scale
    # for the camera and for each object. Rotation, zoom and perspective come on top.
    blur: Range = (4.0, 60.0)
    # Share of clips whose camera stands still, 0..1. Objects then always move.
    still_camera: float = 0.15
    # How much of a path is shake (sums of sine waves) rather than straight, 0..1.
    shake: Range = (0.0, 1.0)
    # Objects in front of the background, whole numbers.
    objects: tuple[int, int] = (1, 3)
    # Diameter of an object, as a share of the frame's shorter side.
    object_size: Range = (0.3, 1.0)
    # Standard deviation of the blur of an object's outline, in frame pixels; 0 is a hard edge.
    edge_softness: Range = (0.0, 2.0)
    # Share of objects that let the background shine through, with an opacity of 0.4 to 0.9.
    translucent: float = 0.15
    # Largest turn in one exposure, degrees: of an object; the camera turns a fifth of it.
    rotation: float = 15.0
    # Largest relative change of size in one exposure: of an object; the camera zooms a third of it.
    zoom: float = 0.08
    # Largest tilt: relative change of scale from the middle of an object to its edge, 0..0.5.
    perspective: float = 0.2
    # Share of textures that are generated rather than taken from photographs, 0..1.
    generated: float = 0.4
    # How strongly textures' contrast, brightness and colours are changed, 0..1.
    recolor: float = 0.5
    # Further photographs to draw textures from, used beside those that ship with scikit-image:
    # files, or folders of them; to train on, and to score.
    photographs: tuple[str, ...] = ()
    eval_photographs: tuple[str, ...] = ()
    # Share of photograph textures that are drawn from `photographs`, if there are any, 0..1.
    own_photographs: float = 0.8

    # Films whose neighbouring frames differ little (see `vrtspike_jax.scenes.films`), from which
    # clips are cut instead of rendered: .npy files, or folders of them; to train on, and to score.
    films: tuple[str, ...] = ()
    eval_films: tuple[str, ...] = ()
    # Share of clips that are cut from films, if there are any, 0..1.
    film_share: float = 0.5
    # Film frames in one exposure; an odd number is drawn.
    film_exposure: tuple[int, int] = (5, 21)
    # By how much a film is shrunk further.
    film_shrink: Range = (1.0, 2.0)

    # The frame camera. Its gain relative to the spike camera; what exceeds white is cut.
    gain: Stretches = (1.0, 1.0)
    # Share of the time between frames during which the shutter is open, centred; above 0, up to 1.
    shutter: Stretches = (1.0, 1.0)
    # Largest change of the light on the scene in the course of a clip, 0..1: dims both cameras.
    light_change: float = 0.0
    # Standard deviation of normal noise on blurred frames, in units of white.
    frame_noise: Stretches = (0.0, 0.0)

    # The spike camera: threshold, in units of white times steps.
    threshold: Stretches = (1.0, 1.0)
    # What a pixel gathers each step without light, in units of white.
    dark_current: Stretches = (0.0, 0.0)
    # Standard deviation of normal noise on what a pixel gathers each step, in units of white.
    spike_noise: Stretches = (0.0, 0.0)
    # Relative standard deviation of the thresholds of single pixels.
    threshold_spread: Stretches = (0.0, 0.0)
    # Steps of each exposure of a clip: at most what other clips have (`config.data.steps`), each
    # as likely as any other; to weigh one, repeat it. A step gathers the mean of the light of
    # those it stands for, so that fewer spikes tell of an exposure. Empty: always all. Clips for
    # scoring have all.
    exposure_steps: tuple[int, ...] = ()

    # Rendering: at most this many frame pixels of motion between sub-frames, unless
    # `max_subframes` (odd) is reached.
    max_step: float = 2.0
    max_subframes: int = 61

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # configs hold lists where we want hashable tuples
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            if field.name in _PATHS:
                paths = (value,) if isinstance(value, str) else value
                object.__setattr__(self, field.name, tuple(os.fspath(p) for p in paths))
                continue
            if field.name == "exposure_steps":
                _check_steps(value)
                continue
            _check(field.name, value, isinstance(field.default, tuple))

    def check_exposures(self, steps: int) -> None:
        """Raises ValueError if an exposure of `steps` steps cannot have `exposure_steps`."""
        for found in self.exposure_steps:
            if found > steps:
                raise ValueError(
                    f"scene option exposure_steps: found {found}, wanted at most "
                    f"config.data.steps, which is {steps}"
                )


# Least and largest allowed values.
_LIMITS = {
    "blur": (0.0, 1000.0),
    "still_camera": (0.0, 1.0),
    "shake": (0.0, 1.0),
    "objects": (0, 32),
    "object_size": (0.05, 4.0),
    "edge_softness": (0.0, 20.0),
    "translucent": (0.0, 1.0),
    "rotation": (0.0, 90.0),
    "zoom": (0.0, 0.5),
    "perspective": (0.0, 0.5),
    "generated": (0.0, 1.0),
    "recolor": (0.0, 1.0),
    "own_photographs": (0.0, 1.0),
    "film_share": (0.0, 1.0),
    "film_exposure": (3, 255),
    "film_shrink": (1.0, 16.0),
    "gain": (0.05, 20.0),
    "shutter": (0.01, 1.0),
    "light_change": (0.0, 1.0),
    "frame_noise": (0.0, 1.0),
    "threshold": (0.05, 100.0),
    "dark_current": (0.0, 1.0),
    "spike_noise": (0.0, 1.0),
    "threshold_spread": (0.0, 0.5),
    "max_step": (0.1, 100.0),
    "max_subframes": (1, 1001),
}


def _check(name: str, value: object, is_range: bool) -> None:
    low, high = _LIMITS[name]
    values = value if isinstance(value, tuple) else (value,)
    fits = len(values) == (2 if is_range else 1) or (len(values) > 2 and name in CAMERAS)
    if not fits or any(
        isinstance(v, bool) or not isinstance(v, int | float) or not low <= v <= high
        for v in values
    ):
        count = "two numbers" if is_range else "a number"
        wanted = f"{count}{' or more' * (name in CAMERAS)} of {low} to {high}"
        raise ValueError(f"scene option {name}: found {value!r}, wanted {wanted}")
    if list(values) != sorted(values):
        raise ValueError(f"scene option {name}: found {value!r}, wanted (least, ..., most)")
    whole = name in ("objects", "max_subframes", "film_exposure")
    if whole and any(v != int(v) for v in values):
        raise ValueError(f"scene option {name}: found {value!r}, wanted whole numbers")
    if name == "max_subframes" and values[0] % 2 == 0:
        raise ValueError(f"scene option {name}: found {value!r}, wanted an odd number")


def _check_steps(value: object) -> None:
    if not isinstance(value, tuple) or any(
        isinstance(v, bool) or not isinstance(v, int) or not 1 <= v <= 2**20 for v in value
    ):
        raise ValueError(
            f"scene option exposure_steps: found {value!r}, wanted whole numbers of 1 to {2**20}"
        )


def scene_options(**overrides: object) -> SceneOptions:
    """`SceneOptions` with some fields changed; an unknown name is a ValueError."""
    names = [field.name for field in dataclasses.fields(SceneOptions)]
    unknown = sorted(set(overrides) - set(names))
    if unknown:
        raise ValueError(
            f"found unknown scene option {unknown[0]!r}{suggestion(unknown[0], names)}"
        )
    return SceneOptions(**overrides)
