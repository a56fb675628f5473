"""Textures for the layers of a scene: photographs or generated, recoloured, cut to size."""

import functools
import math

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from vrtspike_jax.scenes.options import SceneOptions
from vrtspike_jax.scenes.photographs import SUFFIXES, listed, load_photograph, shipped_photographs

SPLITS = ("train", "eval")
# Generated textures of a split; each process makes one when it first needs it.
POOL = 64
_SIDE = 384
_LETTERS = "ABCDEFGHIKLMNOPRSTUVXYZabdefghklmnopqrtuxyz0123456789&%#?"


def random_texture(
    rng: np.random.Generator, split: str, options: SceneOptions, least_side: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws a texture whose shorter side has at least `least_side` pixels, if there is one."""
    if rng.uniform() < options.generated:
        texture = generated_texture(split, int(rng.integers(POOL)))
    else:
        own = own_photographs(split, options)
        paths = own if own and rng.uniform() < options.own_photographs else None
        paths = paths or shipped_photographs(split)
        sizes = load_photograph(paths[int(rng.integers(len(paths)))])
        enough = [size for size in sizes if min(size.shape[:2]) >= least_side] or sizes[:1]
        texture = enough[int(rng.integers(len(enough)))]
    return texture


def own_photographs(split: str, options: SceneOptions) -> tuple[str, ...]:
    """Paths of the photographs that the options name for a split."""
    return listed(options.eval_photographs if split == "eval" else options.photographs, SUFFIXES)


def cut(
    rng: np.random.Generator, texture: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Cuts a random piece; a texture that is too small is mirrored at its edges."""
    down, right = max(0, height - texture.shape[0]), max(0, width - texture.shape[1])
    if down or right:
        # Mirroring repeats, so it may go on for longer than the texture itself.
        texture = cv2.copyMakeBorder(texture, 0, down, 0, right, cv2.BORDER_REFLECT)
    y = int(rng.integers(texture.shape[0] - height + 1))
    x = int(rng.integers(texture.shape[1] - width + 1))
    return texture[y : y + height, x : x + width]


def turned(rng: np.random.Generator, texture: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
    """Lays a texture down in one of eight ways: quarter turns and mirror images."""
    which = int(rng.integers(8))
    texture = texture.transpose(1, 0, 2) if which & 1 else texture
    return np.ascontiguousarray(texture[:: 1 - (which & 2), :: 1 - (which & 4) // 2])


def recolored(
    rng: np.random.Generator, texture: UInt8[np.ndarray, "h w 3"], strength: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Changes contrast, brightness and colours; strength 0 changes nothing."""
    if strength == 0:
        return texture
    mean = float(texture[::8, ::8].mean())
    return cv2.transform(texture, colour_change(rng, mean, strength))


def colour_change(
    rng: np.random.Generator, mean: float, strength: float
) -> Float64[np.ndarray, "3 4"]:
    """Draws a change of contrast, brightness and colours of pictures whose mean is `mean`.

    Returns:
      A matrix for (r, g, b, 1), in units of 0..255.
    """
    mix = np.eye(3) + strength * rng.normal(0, 0.25, (3, 3))
    if rng.uniform() < 0.3 * strength:
        mix = mix[rng.permutation(3)]
    # Rows sum to the contrast, so that gray stays gray but for a mild cast.
    contrast = math.exp(strength * rng.normal(0, 0.35))
    mix *= contrast * np.exp(strength * rng.normal(0, 0.1, (3, 1))) / np.abs(mix.sum(1))[:, None]
    middle = 128 + strength * rng.normal(0, 60)
    # The mean moves part of the way to `middle`.
    bias = strength * (middle - mix @ np.full(3, mean))
    return np.concatenate([mix, bias[:, None]], axis=1)


@functools.lru_cache(maxsize=2 * POOL)
def generated_texture(split: str, index: int) -> UInt8[np.ndarray, "h w 3"]:
    """Texture `index` of a split's pool, 384 x 384; the same arguments give the same bytes.

    A third are dead leaves (shapes over shapes, with the edge statistics of nature), the others
    coloured noise of several octaves, lettering, and regular patterns.
    """
    if split not in SPLITS:
        raise ValueError(f"found split {split!r}, wanted one of {SPLITS}")
    rng = np.random.default_rng([SPLITS.index(split), index, 0x7E87])
    make = (_dead_leaves, _octaves, _dead_leaves, _lettering, _pattern, _octaves)[index % 6]
    texture = make(rng)
    texture.flags.writeable = False
    return texture


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    # Mostly muted: a random gray and a random deviation from it.
    gray, spread = rng.uniform(10, 245), rng.uniform(0, 90)
    return tuple(int(c) for c in np.clip(gray + rng.uniform(-spread, spread, 3), 0, 255))


def _dead_leaves(rng: np.random.Generator) -> np.ndarray:
    picture = np.full((_SIDE, _SIDE, 3), _colour(rng), np.uint8)
    # Radii with density r^-3 make the picture look alike at every scale.
    radii = np.clip(3 / np.sqrt(rng.uniform(0.0008, 1, 900)), 3, 110)
    for radius in radii:
        x, y = rng.uniform(0, _SIDE, 2)
        corners = int(rng.integers(3, 9))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        if rng.uniform() < 0.5:
            axes = (max(1, int(radius)), max(1, int(radius * rng.uniform(0.3, 1))))
            turn = rng.uniform(0, 180)
            centre = (int(x), int(y))
            cv2.ellipse(picture, centre, axes, turn, 0, 360, _colour(rng), -1, cv2.LINE_AA)
        else:
            points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], -1)
            cv2.fillPoly(picture, [points.astype(np.int32)], _colour(rng), cv2.LINE_AA)
    grain = rng.normal(0, rng.uniform(0, 10), picture.shape)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def _octaves(rng: np.random.Generator) -> np.ndarray:
    picture = np.zeros((_SIDE, _SIDE, 3), np.float32)
    falloff = rng.uniform(0.45, 0.9)
    shared = rng.uniform(0.3, 1.0)
    for octave in range(7):
        cells = 3 * 2**octave
        gray = rng.standard_normal((cells, cells, 1), np.float32)
        colour = rng.standard_normal((cells, cells, 3), np.float32)
        grid = np.ascontiguousarray(shared * gray + (1 - shared) * colour)
        grid = cv2.resize(grid, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
        picture += falloff**octave * grid
    picture = (picture - picture.mean()) / picture.std()
    if rng.uniform() < 0.4:
        # Folding turns smooth hills into marble with creases.
        picture = 2 * np.abs(picture) - 1
    picture = 128 + picture * rng.uniform(30, 70) + rng.uniform(-30, 30, 3).astype(np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _lettering(rng: np.random.Generator) -> np.ndarray:
    picture = np.full((_SIDE, _SIDE, 3), _colour(rng), np.uint8)
    ink = _colour(rng)
    for _ in range(70):
        if rng.uniform() < 0.15:
            ink = _colour(rng)
        word = "".join(rng.choice(list(_LETTERS), int(rng.integers(1, 9))))
        size = float(rng.uniform(0.35, 2.2))
        place = (int(rng.integers(-60, _SIDE)), int(rng.integers(0, _SIDE + 20)))
        font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX]))
        width = int(rng.integers(1, 1 + max(2, int(3 * size))))
        cv2.putText(picture, word, place, font, size, ink, width, cv2.LINE_AA)
    return picture


def _pattern(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(7, 60)
    along = (x * np.cos(angle) + y * np.sin(angle)) / period
    across = (y * np.cos(angle) - x * np.sin(angle)) / (period * rng.uniform(0.5, 2))
    kind = int(rng.integers(4))
    if kind == 0:  # stripes
        wave = np.sin(2 * np.pi * along)
    elif kind == 1:  # chequers
        wave = np.sin(2 * np.pi * along) * np.sin(2 * np.pi * across)
    elif kind == 2:  # bricks
        row = np.floor(across)
        gap = np.minimum((along + 0.5 * row) % 1, across % 1)
        wave = gap - 0.12 + 0.3 * np.sin(12.9898 * (np.floor(along + 0.5 * row) + 78.233 * row))
    else:  # rings
        wave = np.sin(2 * np.pi * np.hypot(along, across))
    # A slope of a pixel or so, as a hard threshold would alias.
    share = 1 / (1 + np.exp(-wave * rng.uniform(2, 20)))
    first, second = np.array(_colour(rng)), np.array(_colour(rng))
    picture = first + share[..., None] * (second - first)
    grain = cv2.resize(rng.standard_normal((48, 48), np.float32), (_SIDE, _SIDE))
    picture = picture + rng.uniform(0, 20) * grain[..., None] + rng.normal(0, 3, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)
