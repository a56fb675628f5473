"""Clips cut from films of real motion instead of rendered scenes.

A film is a `.npy` file, uint8 RGB [N, H, W, 3], whose neighbouring frames differ by a pixel or
so: footage of a fast camera, or of an ordinary one, shrunk (`scripts/gather_media.py` makes them).
A run of its frames stands for the sub-frames of an exposure. Files are mapped into memory, so that
all worker processes share one copy.
"""

import dataclasses
import functools
import pathlib
import tokenize
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from vrtspike_jax.scenes.description import Shot, check_shot, odd, sample_cameras
from vrtspike_jax.scenes.options import SceneOptions
from vrtspike_jax.scenes.photographs import PhotographError, listed
from vrtspike_jax.scenes.textures import SPLITS, colour_change, own_photographs

_STREAM = 0xF11  # keeps the choice between film and scene apart from what is drawn of either
_LEAST_EXPOSURE = 3
# What NumPy raises for damaged files; their headers are Python.
_UNREADABLE = (
    *(OSError, ValueError, EOFError),
    *(SyntaxError, TypeError, OverflowError, tokenize.TokenError),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film(Shot):
    """A clip to be cut from a film.

    Attributes:
      pictures: uint8 RGB [T * R, h, w, 3], the part of the film; h x w are shrunk to the frames.
      colours: matrix [3, 4] for (r, g, b, 1) in 0..255, or None for no change.
      (others): as in `Shot`.
    """

    pictures: UInt8[np.ndarray, "N h w 3"]
    colours: Float64[np.ndarray, "3 4"] | None


def is_film(seed: int, split: str, options: SceneOptions) -> bool:
    """Whether the clip of this seed is cut from a film."""
    if not film_paths(split, options) or seed < 0:
        return False
    return np.random.default_rng([_STREAM, seed]).uniform() < options.film_share


def sample_film(
    seed: int, num_frames: int, height: int, width: int, split: str, options: SceneOptions
) -> Film:
    """Draws a part of a film; equal arguments give an equal part.

    Raises:
      ValueError: as `sample_scene`.
      PhotographError: no film, or one too short or too small for the clip.
    """
    check_shot(seed, num_frames, height, width, split)
    rng = np.random.default_rng([_STREAM, SPLITS.index(split), seed])
    paths = film_paths(split, options)
    path = paths[int(rng.integers(len(paths)))]
    film = load_film(path)
    most = len(film) // num_frames
    if most < _LEAST_EXPOSURE or film.shape[1] < height or film.shape[2] < width:
        raise PhotographError(
            f"{path}: found {len(film)} frames of {film.shape[1]} x {film.shape[2]}, wanted at "
            f"least {num_frames * _LEAST_EXPOSURE} of {height} x {width}"
        )
    # Shrinking slows motion down and longer exposures make up for it; both are drawn freely.
    low, high = options.film_exposure
    most -= 1 - most % 2
    subframes = odd(rng.uniform(low, high), min(most, high), min(most, low))
    room = min(film.shape[1] / height, film.shape[2] / width)
    shrink = np.exp(rng.uniform(*np.log(np.minimum(options.film_shrink, room))))
    size = np.minimum(np.round(np.array([height, width]) * shrink), film.shape[1:3]).astype(int)
    first = int(rng.integers(len(film) - num_frames * subframes + 1))
    y, x = (int(rng.integers(have - s + 1)) for have, s in zip(film.shape[1:3], size, strict=True))
    pictures = film[first : first + num_frames * subframes, y : y + size[0], x : x + size[1]]
    colours = None
    if options.recolor:
        colours = colour_change(rng, float(pictures[0, ::8, ::8].mean()), options.recolor)
    return Film(
        height=height,
        width=width,
        frames=num_frames,
        subframes=subframes,
        pictures=pictures,
        colours=colours,
        **sample_cameras(rng, subframes, options),
    )


def play_exposures(film: Film) -> Iterator[UInt8[np.ndarray, "R H W 3"]]:
    """The clip, exposure by exposure: `film.frames` arrays of `film.subframes` pictures."""
    size = (film.width, film.height)
    for pictures in np.split(film.pictures, film.frames):
        exposure = np.empty((film.subframes, film.height, film.width, 3), np.uint8)
        for picture, out in zip(pictures, exposure, strict=True):
            if picture.shape != out.shape:
                picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            out[...] = picture if film.colours is None else cv2.transform(picture, film.colours)
        yield exposure


@functools.lru_cache(maxsize=256)
def load_film(path: str) -> UInt8[np.ndarray, "N H W 3"]:
    """Maps a film into memory.

    Raises:
      PhotographError: the file is missing or no film.
    """
    try:
        film = np.lib.format.open_memmap(path, mode="r")
    except _UNREADABLE as error:
        raise PhotographError(f"{path}: found no readable film: {error}") from None
    if film.dtype != np.uint8 or film.shape[3:] != (3,):
        found = f"{film.dtype} {film.shape}"
        raise PhotographError(f"{path}: found {found}, wanted a film: uint8 [N, H, W, 3]")
    return film


def check_media(split: str, options: SceneOptions) -> None:
    """Makes sure that the photographs and films of a split are there, before any is needed.

    Raises:
      PhotographError: one is missing, or a film cannot be read.
    """
    for path in film_paths(split, options):
        load_film(path)
    for path in own_photographs(split, options):
        if not pathlib.Path(path).is_file():
            raise PhotographError(f"{path}: no such photograph")


def film_paths(split: str, options: SceneOptions) -> tuple[str, ...]:
    """Paths of the films that the options name for a split."""
    return listed(options.eval_films if split == "eval" else options.films, (".npy",))
