import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import pyvips
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vrtspike_jax.data import images
from vrtspike_jax.data.errors import DataError

SIZE = (30, 44)
PICTURE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module", autouse=True)
def stop_early():
    """Takes the way of large pictures for the small ones here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_WORTH_STOPPING", 0)
        yield


def encode(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **{"format": "PNG"} | options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def palette_png():
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).quantize(16).save(buffer, "PNG")
    return buffer.getvalue()


def interlaced_png():
    image = pyvips.Image.new_from_array(PICTURE, interpretation="srgb")
    return image.pngsave_buffer(interlace=True)


FILES = {
    "png": encode(PICTURE),
    "grey png": encode(PICTURE[..., 0]),
    "png with alpha": encode(np.dstack([PICTURE, PICTURE[..., 0]])),
    "palette png": palette_png(),
    "16-bit png": cv2.imencode(".png", PICTURE[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
    "interlaced png": interlaced_png(),
    "bmp": encode(PICTURE, format="BMP"),
    "jpeg": encode(PICTURE, format="JPEG", quality=95),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_window_is_the_window_of_the_whole_image(kind):
    whole = images.decode(FILES[kind], SIZE, "file")
    assert whole.shape == (*SIZE, 3) and whole.dtype == np.uint8
    for rows, cols in (((0, 8), (0, 8)), ((3, 29), (5, 44)), ((20, 30), (40, 44))):
        window = images.decode(FILES[kind], SIZE, "file", rows, cols)
        np.testing.assert_array_equal(window, whole[slice(*rows), slice(*cols)])


@pytest.mark.parametrize("kind", ["png", "16-bit png", "interlaced png", "bmp", "png with alpha"])
def test_lossless_files_come_back_as_they_were(kind):
    np.testing.assert_array_equal(images.decode(FILES[kind], SIZE, "file"), PICTURE)


def test_nothing_below_the_window_is_decoded(monkeypatch):
    monkeypatch.setattr(images, "_whole", None)
    damaged = bytearray(FILES["png"])
    damaged[-40] ^= 0xFF
    window = images.decode(bytes(damaged), SIZE, "file", (0, 8), (3, 40))
    np.testing.assert_array_equal(window, PICTURE[:8, 3:40])


def test_grey_becomes_three_equal_channels():
    decoded = images.decode(FILES["grey png"], SIZE, "file")
    np.testing.assert_array_equal(decoded, np.repeat(PICTURE[..., :1], 3, axis=-1))


def test_orientation_marks_are_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = encode(PICTURE, format="JPEG", quality=95, exif=exif)
    np.testing.assert_array_equal(
        images.decode(turned, SIZE, "file"), images.decode(FILES["jpeg"], SIZE, "file")
    )


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_files_are_errors_that_name_the_file(kind, share, tmp_path):
    data = FILES[kind][: int(len(FILES[kind]) * share)]
    with pytest.raises(DataError, match=r"some/file\.png"):
        images.decode(data, SIZE, "some/file.png")
    path = tmp_path / "file"
    path.write_bytes(data)
    assert not images.looks_complete(str(path))


@pytest.mark.parametrize("kind", FILES)
def test_complete_files_look_complete(kind, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(FILES[kind])
    assert images.looks_complete(str(path))


def test_a_flipped_byte_in_a_png_is_an_error():
    data = bytearray(FILES["png"])
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DataError, match="damaged"):
        images.decode(bytes(data), SIZE, "file")
    with pytest.raises(DataError, match="damaged"):
        images.decode(bytes(data), SIZE, "file", (0, 29), (0, 44))


def test_another_size_is_an_error_that_says_both():
    with pytest.raises(DataError, match="found 30 x 44 pixels, wanted 30 x 40"):
        images.decode(FILES["png"], (30, 40), "file")


def test_other_formats_are_refused(tmp_path):
    gif = encode(PICTURE, format="GIF")
    with pytest.raises(DataError, match="not a readable PNG, JPEG or BMP"):
        images.decode(gif, SIZE, "file")
    with pytest.raises(DataError, match="no such image"):
        images.header_size(str(tmp_path / "none.png"), "none.png", 100)


def test_a_header_cannot_make_the_decoder_allocate():
    # 60,000 x 60,000 pixels in 70 bytes.
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(DataError, match=r"60000 x 60000|pixels"):
            images.header_size(io.BytesIO(data), "bomb.png", 2**26)
        with pytest.raises(DataError, match=r"bomb\.png"):
            images.decode(data, SIZE, "bomb.png")


@settings(max_examples=300, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(FILES)))
def test_damaged_files_give_an_image_of_the_right_size_or_a_data_error(data, kind):
    damaged = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        damaged[position] = data.draw(st.integers(0, 255))
    window = data.draw(st.booleans())
    spans = ((4, 20), (3, 9)) if window else (None, None)
    try:
        image = images.decode(bytes(damaged), SIZE, "file", *spans)
    except DataError:
        return
    assert image.shape == ((16, 6, 3) if window else (*SIZE, 3))


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=300),
    head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"BM", b"\xff\xd8"]),
)
def test_any_bytes_give_a_data_error(data, head):
    with pytest.raises(DataError):
        images.decode(head + data, SIZE, "file")
