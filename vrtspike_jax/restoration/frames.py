"""Frames from a folder of images: all headers are checked before the first one is decoded."""

import re
from pathlib import Path

import cv2
import numpy as np

from vrtspike_jax.data import images

IMAGE_SUFFIXES = images.SUFFIXES
MAX_PIXELS = 2**28


class FolderFrames:
    """PNG, JPEG or BMP images of one size and depth, in the natural order of their names.

    Attributes:
      names: file names without their endings.
      size: (height, width) in pixels.
      dtype: uint8, or uint16 for 16-bit PNG.
      fps: None, a folder has no rate.
      readers: threads that may read at the same time.

    Raises:
      ValueError: no folder, no images, names that differ in their ending only, files of different
        sizes or depths, and damaged or truncated ones.
    """

    fps = None
    readers = 4

    def __init__(self, folder: Path):
        self.path = Path(folder)
        if not self.path.is_dir():
            raise ValueError(f"{folder}: no such folder of images")
        files = [p for p in self.path.iterdir() if p.suffix.lower() in images.SUFFIXES]
        self._files = sorted((p for p in files if p.name[0] != "."), key=natural_key)
        if not self._files:
            raise ValueError(f"{folder}: no images; wanted {', '.join(images.SUFFIXES)}")
        self.names = [file.stem for file in self._files]
        for one, other in zip(self._files, self._files[1:], strict=False):
            if one.stem == other.stem:
                raise ValueError(f"{folder}: both {one.name} and {other.name}; wanted one of them")
        self.size, self.dtype = self._inspect(self._files[0])
        for file in self._files[1:]:
            size, dtype = self._inspect(file)
            if (size, dtype) != (self.size, self.dtype):
                raise ValueError(
                    f"{file}: found {_describe(size, dtype)}, wanted "
                    f"{_describe(self.size, self.dtype)} as in {self._files[0].name}"
                )

    def __len__(self) -> int:
        return len(self._files)

    @staticmethod
    def _inspect(file: Path) -> tuple[tuple[int, int], np.dtype]:
        size = images.header_size(str(file), str(file), MAX_PIXELS)
        if not images.looks_complete(str(file)):
            raise ValueError(f"{file}: the image is truncated")
        with open(file, "rb") as opened:
            head = opened.read(26)
        # The byte after width and height of a PNG's first chunk is its bit depth.
        deep = head[:4] == b"\x89PNG" and head[24] == 16
        return size, np.dtype(np.uint16 if deep else np.uint8)

    def read(self, index: int) -> np.ndarray:
        """Frame `index` as RGB, [H,W,3].

        Raises:
          ValueError: it cannot be decoded, or has changed since it was listed.
        """
        file = self._files[index]
        if self.dtype == np.uint8:
            return images.read(str(file), self.size)
        data = np.frombuffer(images.read_bytes(str(file)), np.uint8)
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            frame = cv2.imdecode(data, flags)
        except cv2.error as error:
            raise ValueError(f"{file}: cannot be decoded: {error}") from None
        if frame is None or frame.shape != (*self.size, 3) or frame.dtype != self.dtype:
            raise ValueError(f"{file}: cannot be decoded, the file is damaged")
        return frame

    def close(self) -> None:
        """Nothing is held open."""


def natural_key(path: Path) -> list:
    """Sorts frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if part.isdigit() else part for part in parts]


def _describe(size: tuple[int, int], dtype: np.dtype) -> str:
    return f"{size[0]} x {size[1]} pixels of {8 * dtype.itemsize} bits"
