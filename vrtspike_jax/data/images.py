"""Reading PNG, JPEG and BMP files that may be broken or hostile.

The size is taken from the header and compared with what is wanted before a single pixel is decoded,
so no file can make the decoder allocate more than the config allows.
"""

import io
import logging
import os

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vrtspike_jax.data.errors import DataError

# Read on import. The pipeline has threads and processes of its own.
os.environ.setdefault("VIPS_CONCURRENCY", "1")
import pyvips

# Every image is decoded once; a cache would only grow.
pyvips.cache_set_max(0)
# It logs a line for each image at INFO.
logging.getLogger("pyvips").setLevel(logging.WARNING)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_FORMATS = ("PNG", "JPEG", "BMP")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"

# Pixels below a window from which on stopping early pays: setting libvips up takes about 1 ms.
_WORTH_STOPPING = 2**16

Size = tuple[int, int]
Span = tuple[int, int]


def header_size(file: io.BufferedIOBase | str, name: str, max_pixels: int | None = None) -> Size:
    """The size (height, width) that an image's header states. Nothing is decoded.

    Args:
      file: a path, or an open file.
      name: what to call it in messages.
      max_pixels: largest height x width that is accepted; None accepts any.

    Raises:
      DataError: missing, empty, not a PNG, JPEG or BMP, or larger than `max_pixels`.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
    except FileNotFoundError:
        raise DataError(f"{name}: no such image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:
        # Pillow's parsers raise many kinds (struct.error, SyntaxError, zlib.error, ...).
        raise DataError(
            f"{name}: not a readable PNG, JPEG or BMP image ({type(error).__name__}: {error})"
        ) from None
    if max_pixels is not None and height * width > max_pixels:
        raise DataError(
            f"{name}: found an image of {height} x {width} pixels, wanted at most "
            f"config.data.max_image_pixels={max_pixels}"
        )
    return height, width


def looks_complete(path: str) -> bool:
    """Whether a file ends as an image of its kind does; a truncated one does not.

    False may be wrong (some programs append bytes), True may be too (a damaged middle): decoding
    decides.
    """
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(max(0, size - 12))
        tail = file.read()
    if head == _PNG_SIGNATURE:
        return tail == _PNG_END
    if head[:2] == b"\xff\xd8":
        return tail[-2:] == b"\xff\xd9"
    # A BMP says its own length.
    return head[:2] == b"BM" and int.from_bytes(head[2:6], "little") == size


def decode(
    data: bytes, size: Size, name: str, rows: Span | None = None, cols: Span | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image of known size, or a window of it, to RGB.

    Grey images become three equal channels, transparency is dropped, 16-bit values keep their
    upper 8 bits, and a camera's orientation mark is ignored (spikes would not follow it). Of a PNG
    nothing below the window is decoded, which halves the time of a crop on average; damage there
    stays unseen.

    Args:
      data: the file's bytes.
      size: the (height, width) it must have.
      name: what to call it in messages.
      rows, cols: half-open (first, last); None keeps all.

    Raises:
      DataError: not an image, a damaged one, or of another size.
    """
    found = header_size(io.BytesIO(data), name)
    if found != size:
        raise DataError(
            f"{name}: found {found[0]} x {found[1]} pixels, wanted {size[0]} x {size[1]}"
        )
    rows, cols = rows or (0, size[0]), cols or (0, size[1])
    window = None
    below = (size[0] - rows[1]) * size[1]
    if below >= _WORTH_STOPPING and data.startswith(_PNG_SIGNATURE):
        window = _png_window(data, name, rows, cols)
    return _whole(data, size, name)[slice(*rows), slice(*cols)] if window is None else window


def read(
    path: str, size: Size, rows: Span | None = None, cols: Span | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image file of known size, or a window of it; see `decode`."""
    return decode(read_bytes(path), size, path, rows, cols)


def read_bytes(path: str) -> bytes:
    """The bytes of a file.

    Raises:
      DataError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _whole(data: bytes, size: Size, name: str) -> np.ndarray:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{name}: cannot be decoded: {error}") from None
    if image is None or image.shape != (*size, 3):
        raise DataError(f"{name}: cannot be decoded, the file is damaged")
    return image


def _png_window(data: bytes, name: str, rows: Span, cols: Span) -> np.ndarray | None:
    """None for PNG files of another kind than 8-bit RGB, which are left to OpenCV."""
    (top, bottom), (left, right) = rows, cols
    try:
        # `pngload_buffer` and not `new_from_buffer`: the bytes shall not choose the decoder.
        image = pyvips.Image.pngload_buffer(data, access="sequential", fail_on="warning")
        if image.format != "uchar" or image.bands != 3:
            return None
        return image.crop(left, top, right - left, bottom - top).numpy()
    except pyvips.Error as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: cannot be decoded, the file is damaged ({reason})") from None
