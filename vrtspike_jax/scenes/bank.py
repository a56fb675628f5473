"""Films and rendered scenes as one array, from which an accelerator cuts clips.

Reels are pieces of films, and scenes that are drawn once as films. All have the same shape, so that
a clip is a place in one array; `vrtspike_jax.scenes.expose_jax` does the rest.
"""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32, UInt8

from vrtspike_jax.scenes.description import sample_scene
from vrtspike_jax.scenes.films import film_paths, load_film
from vrtspike_jax.scenes.options import SceneOptions
from vrtspike_jax.scenes.photographs import PhotographError
from vrtspike_jax.scenes.raster import draw_exposures


@dataclasses.dataclass(frozen=True)
class Bank:
    """Reels to cut clips from.

    Attributes:
      pictures: uint8 RGB [M, N, side, side, 3]; zero beyond a reel's own size.
      sizes: [M, 3]: frames, height and width of each reel.
      films: for each film, which reels are its pieces.
      scenes: which reels are rendered.
    """

    pictures: UInt8[np.ndarray, "M N side side 3"]
    sizes: Int32[np.ndarray, "M 3"]
    films: tuple[range, ...]
    scenes: range


def load_bank(
    split: str,
    options: SceneOptions,
    *,
    scenes: int,
    exposures: int,
    subframes: int,
    side: int,
    least_side: int,
) -> Bank:
    """Cuts the films that the options name into reels, and renders scenes as further ones.

    Args:
      split: "train" or "eval".
      options: what scenes look like, and which films there are.
      scenes: how many scenes to render; their seeds are 0, 1, ...
      exposures: exposures of a clip (T); a rendered reel shows as many.
      subframes: frames of an exposure at most; reels have up to exposures * subframes frames.
      side: of the reels, pixels.
      least_side: smallest side, in pixels, that clips can be cut from.

    Raises:
      ValueError: neither films nor scenes.
      PhotographError: a film that is missing, no film, or too short or too small.
    """
    length = exposures * subframes
    least = (3 * exposures, least_side, least_side)
    cuts, films = [], []
    for path in film_paths(split, options):
        pieces = [(path, cut) for cut in _cuts(path, (length, side, side), least)]
        films.append(range(len(cuts), len(cuts) + len(pieces)))
        cuts += pieces
    if not cuts and not scenes:
        raise ValueError("found neither films nor scenes to render, wanted at least one of them")
    count = len(cuts) + scenes
    pictures = np.zeros((count, length, side, side, 3), np.uint8)
    sizes = np.zeros((count, 3), np.int32)
    options = dataclasses.replace(options, max_subframes=subframes - 1 + subframes % 2)

    def fill(i: int) -> None:
        if i < len(cuts):
            path, cut = cuts[i]
            reel = load_film(path)[cut]
        else:
            scene = sample_scene(i - len(cuts), exposures, side, side, split, options)
            reel = np.concatenate(list(draw_exposures(scene)))
        sizes[i] = reel.shape[:3]
        pictures[i, : len(reel), : reel.shape[1], : reel.shape[2]] = reel

    # OpenCV lets other threads run while it draws.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(count)))
    return Bank(pictures, sizes, tuple(films), range(len(cuts), count))


def _cuts(
    path: str, most: tuple[int, int, int], least: tuple[int, int, int]
) -> Iterator[tuple[slice, slice, slice]]:
    """Pieces that cover a film, overlapping as evenly as can be; sizes are (N, h, w)."""
    size = load_film(path).shape[:3]
    if any(have < need for have, need in zip(size, least, strict=True)):
        found, wanted = (f"{n} frames of {h} x {w}" for n, h, w in (size, least))
        raise PhotographError(f"{path}: found {found}, wanted at least {wanted}")
    spans = []
    for have, piece in zip(size, most, strict=True):
        starts = np.linspace(0, max(0, have - piece), -(-have // piece)).round().astype(int)
        spans.append([slice(int(start), int(start) + piece) for start in starts])
    return itertools.product(*spans)
