"""How a frame is stored in a prepared data set (TFDS, ArrayRecord): one record a frame.

Images are stored as PNG tiles, losslessly, so that a crop decodes the few tiles it touches instead
of everything above its last row. Spikes are stored as one bit a pixel and step, as in a `.dat`, but
with the top row first and every row a whole number of bytes.
"""

import dataclasses
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from vrtspike_jax.data import images
from vrtspike_jax.data.errors import DataError
from vrtspike_jax.data.geometry import Crop, Size
from vrtspike_jax.data.sequences import Sequence
from vrtspike_jax.spikes.dat import read_dat

FORMAT = 1
# Of 64, 96, 128, 160, 180 and whole rows, 128 decodes crops of 256 quickest (a sixth of the frame).
TILE = 128
PNG_LEVEL = 4

Example = dict[str, Any]


def features() -> Any:
    """The `tfds.features.FeaturesDict` of a record."""
    import tensorflow_datasets as tfds

    def encoded() -> Any:
        return tfds.features.Tensor(shape=(), dtype=np.object_)

    return tfds.features.FeaturesDict(
        {
            "sequence": tfds.features.Text(doc="Name of the sequence."),
            "frame": tfds.features.Text(doc="Name of the frame."),
            "size": tfds.features.Tensor(
                shape=(2,), dtype=np.int64, doc="Height, width of the images, pixels."
            ),
            "tile": tfds.features.Tensor(
                shape=(2,), dtype=np.int64, doc="Height, width of a tile, pixels."
            ),
            "spike_size": tfds.features.Tensor(
                shape=(3,), dtype=np.int64, doc="Steps, height, width of the spikes."
            ),
            # Row by row; tiles at the right and lower border are smaller.
            "blur": tfds.features.Sequence(encoded(), doc="Image files of the tiles."),
            "sharp": tfds.features.Sequence(encoded(), doc="Image files of the tiles."),
            "spikes": encoded(),
        }
    )


@dataclasses.dataclass(frozen=True)
class FrameRecord:
    """The expected sizes of a record; what it holds is checked against them before decoding.

    Attributes:
      name: what to call it in messages.
      size: height, width of the images.
      tile: height, width of a tile.
      spike_size: steps, height, width.
    """

    name: str
    size: Size
    tile: Size
    spike_size: tuple[int, int, int]

    def decode(self, example: Example, crop: Crop) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(blur [h, w, 3], sharp [h, w, 3], spikes [S, hs, ws]) inside a crop.

        Raises:
          DataError: the record holds something else.
        """
        for field in ("size", "tile", "spike_size"):
            found, wanted = tuple(np.asarray(example[field]).tolist()), getattr(self, field)
            if found != wanted:
                raise DataError(f"{self.name}: found {field} {found}, wanted {wanted}")
        blur = self._image(example["blur"], crop, "blur")
        sharp = self._image(example["sharp"], crop, "sharp")
        return blur, sharp, self._spikes(example["spikes"], crop)

    def _image(self, tiles: list[bytes], crop: Crop, what: str) -> UInt8[np.ndarray, "h w 3"]:
        (height, width), (tile_height, tile_width) = self.size, self.tile
        columns = -(-width // tile_width)
        count = -(-height // tile_height) * columns
        if len(tiles) != count:
            raise DataError(f"{self.name}: found {len(tiles)} tiles of {what}, wanted {count}")
        (y0, y1), (x0, x1) = crop.rows, crop.cols
        image = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        for row in range(y0 // tile_height, -(-y1 // tile_height)):
            for column in range(x0 // tile_width, -(-x1 // tile_width)):
                top, left = row * tile_height, column * tile_width
                bottom, right = min(top + tile_height, height), min(left + tile_width, width)
                rows = max(y0, top), min(y1, bottom)
                cols = max(x0, left), min(x1, right)
                name = f"{self.name}, tile {row * columns + column} of {what}"
                image[rows[0] - y0 : rows[1] - y0, cols[0] - x0 : cols[1] - x0] = images.decode(
                    tiles[row * columns + column],
                    (bottom - top, right - left),
                    name,
                    (rows[0] - top, rows[1] - top),
                    (cols[0] - left, cols[1] - left),
                )
        return image

    def _spikes(self, packed: bytes, crop: Crop) -> UInt8[np.ndarray, "S hs ws"]:
        steps, height, width = self.spike_size
        row_bytes = -(-width // 8)
        if len(packed) != steps * height * row_bytes:
            raise DataError(
                f"{self.name}: found {len(packed)} bytes of spikes, wanted "
                f"{steps * height * row_bytes} ({steps} steps of {height} x {width})"
            )
        (y0, y1), (x0, x1) = crop.spike_rows, crop.spike_cols
        first = x0 // 8
        rows = np.frombuffer(packed, np.uint8).reshape(steps, height, row_bytes)
        bits = np.unpackbits(rows[:, y0:y1, first : -(-x1 // 8)], axis=-1, bitorder="little")
        return bits[..., x0 - first * 8 : x1 - first * 8]


def encode_frame(sequence: Sequence, frame: int, tile: int = TILE) -> Example:
    """Reads a frame of a data set in files as a record; every byte of it is decoded once.

    Args:
      sequence: verified files.
      frame: which of its frames.
      tile: side of a tile in pixels; 0 stores the image files as they are, in one piece.

    Raises:
      DataError: a file is damaged.
    """
    files, size = sequence.files, sequence.geometry.frame
    first, last = sequence.exposures[frame]
    try:
        spikes = read_dat(
            sequence.spike_path(frame),
            *sequence.geometry.spike,
            start=first,
            count=last - first,
            head_columns=sequence.head_columns,
        )
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from None
    tile_size = (tile, tile) if tile else size
    return {
        "sequence": files.name,
        "frame": files.frame_name(frame),
        "size": np.array(size, np.int64),
        "tile": np.array(tile_size, np.int64),
        "spike_size": np.array(spikes.shape, np.int64),
        "blur": _tiles(files.blur.path(frame), size, tile_size, bool(tile)),
        "sharp": _tiles(files.sharp.path(frame), size, tile_size, bool(tile)),
        "spikes": np.packbits(spikes, axis=-1, bitorder="little").tobytes(),
    }


def _tiles(path: str, size: Size, tile: Size, encode: bool) -> list[bytes]:
    data = images.read_bytes(path)
    image = images.decode(data, size, path)
    if not encode:
        return [data]
    tiles = []
    for top in range(0, size[0], tile[0]):
        for left in range(0, size[1], tile[1]):
            part = image[top : top + tile[0], left : left + tile[1], ::-1]
            done, buffer = cv2.imencode(".png", part, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
            if not done:
                raise RuntimeError(f"{path}: OpenCV cannot write PNG")
            tiles.append(buffer.tobytes())
    return tiles
