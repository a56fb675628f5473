"""Image files, whole and hostile: damage that keeps checksums right reaches the decoders."""

import io
import struct
import zlib

import cv2
import numpy as np
from damage import damaged
from hypothesis import strategies as st
from PIL import Image

SIZE = (24, 32)
_PICTURE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def _encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def samples() -> list[bytes]:
    """PNG (RGB, grey, palette, 16 bits, with text), JPEG (baseline, progressive, EXIF), BMP."""
    image = Image.fromarray(_PICTURE)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = cv2.imencode(".png", _PICTURE.astype(np.uint16) * 257)[1].tobytes()
    return [
        _encode(image, "PNG"),
        _encode(image.convert("L"), "PNG"),
        _encode(image.quantize(16), "PNG"),
        _encode(image.convert("RGBA"), "PNG"),
        deep,
        _encode(image, "JPEG", quality=90),
        _encode(image, "JPEG", quality=60, progressive=True, exif=exif),
        _encode(image, "BMP"),
    ]


def _chunk(kind, body, right):
    check = zlib.crc32(kind + body) if right else 0
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


_SIDES = st.sampled_from([0, 1, 24, 32, 33, 2**15, 60_000, 2**31 - 1, 2**31, 2**32 - 1])
_HEADERS = st.builds(
    lambda width, height, *rest: (b"IHDR", struct.pack(">II", width, height) + bytes(rest)),
    st.sampled_from([32, 32, 32, 60_000]) | _SIDES,
    st.sampled_from([24, 24, 24, 60_000]) | _SIDES,
    st.sampled_from([8, 8, 1, 2, 4, 16, 3]),
    st.sampled_from([2, 0, 3, 4, 6, 1, 255]),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([0, 1, 2]),
)
# Right for 24 rows of 32 RGB pixels, too short, too long, a bomb, and no stream at all.
_PIXELS = st.sampled_from(
    [
        zlib.compress(bytes(24 * 97)),
        zlib.compress(bytes(24 * 97 - 1)),
        zlib.compress(bytes(24 * 97 + 500)),
        zlib.compress(bytes(2**22), 9),
        zlib.compress(b""),
        b"\x00",
        b"",
    ]
).map(lambda body: (b"IDAT", body))
_OTHERS = st.one_of(
    st.tuples(
        st.sampled_from([b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"eXIf"]),
        st.binary(max_size=40),
    ),
    # A text chunk that unpacks to 64 MiB.
    st.just((b"zTXt", b"comment\0\0" + zlib.compress(bytes(2**26), 9))),
    st.tuples(st.binary(min_size=4, max_size=4), st.binary(max_size=20)),
)


def hostile_pngs():
    """PNG files of legal and illegal chunks, nearly all with the right checksum."""
    chunks = st.builds(
        lambda head, others, pixels, more: [head, *others, *pixels, *more, (b"IEND", b"")],
        _HEADERS,
        st.lists(_OTHERS, max_size=2),
        st.lists(_PIXELS, max_size=2),
        st.lists(st.one_of(_HEADERS, _OTHERS, _PIXELS), max_size=2),
    )
    right = st.sampled_from([True] * 9 + [False])
    return st.builds(
        lambda parts, ok: b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*p, ok) for p in parts),
        chunks,
        right,
    )


def hostile_jpegs():
    """JPEG files with a second frame header of another size, or with segments in odd order."""
    jpegs = [s for s in samples() if s.startswith(b"\xff\xd8")]
    frame = st.builds(
        lambda kind, bits, height, width: (
            bytes([0xFF, kind, 0, 17, bits])
            + struct.pack(">HH", height, width)
            + bytes([3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1])
        ),
        st.sampled_from([0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA]),
        st.sampled_from([8, 12, 0]),
        st.sampled_from([0, 24, 60_000]),
        st.sampled_from([0, 32, 60_000]),
    )

    def insert(jpeg, segment, place):
        marks = [i for i in range(2, len(jpeg) - 1) if jpeg[i] == 0xFF and jpeg[i + 1] >= 0xC0]
        at = marks[place % len(marks)]
        return jpeg[:at] + segment + jpeg[at:]

    return st.builds(insert, st.sampled_from(jpegs), frame, st.integers(0, 20))


def hostile_images():
    """Any of the above, or whole files with damaged bytes."""
    return st.one_of(damaged(samples()), hostile_pngs(), hostile_jpegs())
