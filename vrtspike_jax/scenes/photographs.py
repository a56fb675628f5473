"""Photographs as texture: those in scikit-image's package, and any that the user names.

scikit-image ships some of its sample pictures and downloads the others on demand. Only those it
ships are used, read straight from its folder, so that nothing is ever downloaded.
"""

import functools
import importlib.util
import pathlib
import warnings

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

# Training and scoring never share a picture, nor two views of one scene.
SHIPPED = {
    "train": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "coins.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "page.png",
        "retina.jpg",
        "rocket.jpg",
    ),
    "eval": ("chelsea.png", "coffee.png", "grass.png", "text.png"),
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_LARGEST_SIDE = 1024
_PYRAMID = (1.0, 0.7, 0.5, 0.35)


class PhotographError(ValueError):
    """A photograph or film is missing or cannot be read as one."""


@functools.cache
def listed(paths: tuple[str, ...], suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """The files among `paths`, with those of a suffix in place of each folder, in order of name.

    Raises:
      PhotographError: a folder holds no such file.
    """
    files = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
            if not inside:
                raise PhotographError(f"{path}: found no file that ends in {', '.join(suffixes)}")
            files += inside
        else:
            files.append(path)
    return tuple(map(str, files))


@functools.lru_cache(maxsize=256)
def load_photograph(path: str) -> tuple[UInt8[np.ndarray, "h w 3"], ...]:
    """Reads a photograph at several sizes, largest first (longest side at most 1024 pixels).

    Raises:
      PhotographError: the file is missing or no picture.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise PhotographError(f"{path}: no such photograph")
    try:
        with Image.open(file) as image:
            picture = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise PhotographError(f"{path}: found no readable picture: {error}") from None
    first = min(1.0, _LARGEST_SIDE / max(picture.shape[:2]))
    sizes = []
    for scale in _PYRAMID:
        height, width = (max(1, round(first * scale * side)) for side in picture.shape[:2])
        # Averaging over areas keeps the pictures free of the moiré that moving textures show.
        scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        scaled.flags.writeable = False
        sizes.append(scaled)
    return tuple(sizes)


@functools.cache
def shipped_photographs(split: str) -> tuple[str, ...]:
    """Paths of the pictures of a split ("train" or "eval") in the installed scikit-image.

    A future version may ship fewer of them: those are left out with a warning, since scenes can do
    with fewer, but the same seed then gives other clips.

    Raises:
      ValueError: unknown split.
      PhotographError: scikit-image is not installed, or ships none of the pictures.
    """
    if split not in SHIPPED:
        raise ValueError(f"found split {split!r}, wanted one of {sorted(SHIPPED)}")
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise PhotographError("scikit-image is not installed; wanted its sample photographs")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "data"
    names = [name for name in SHIPPED[split] if (folder / name).is_file()]
    if not names:
        raise PhotographError(
            f"{folder}: found none of {', '.join(SHIPPED[split])}; install scikit-image 0.26, or "
            "set the scene option generated=1.0 to do without photographs"
        )
    if len(names) < len(SHIPPED[split]):
        warnings.warn(
            f"{folder}: found {len(names)} of {len(SHIPPED[split])} photographs for scenes; "
            "clips differ from those rendered with scikit-image 0.26",
            stacklevel=2,
        )
    return tuple(str(folder / name) for name in names)
