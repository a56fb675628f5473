"""Hypothesis strategies for input that is damaged, hostile or nonsense."""

import copy
import math

from hypothesis import strategies as st

# Four-byte numbers that break size arithmetic: zero, limits of the signs, one more than a limit.
_WORDS = [n.to_bytes(4, order) for n in (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
          for order in ("big", "little")]  # fmt: skip

# One draw for all edits, which is many times quicker than drawing their parts: five bytes an edit.
_EDITS = st.binary(max_size=30)


def damaged(samples):
    """Bytes of one of `samples` after up to six edits: flips, cuts, repeats, insertions."""
    samples = sorted(samples)
    return st.builds(damage, st.sampled_from(samples), st.sampled_from(samples), _EDITS)


def damage(data: bytes, other: bytes, edits: bytes) -> bytes:
    """`data` after edits, five bytes each, some of which splice a part of `other` in."""
    data = bytearray(data)
    for kind, high, low, value, word in zip(*[iter(edits)] * 5, strict=False):
        kind, where = kind % 8, 256 * high + low
        at = where % (len(data) + 1)
        if kind == 0:
            data[at : at + 1] = bytes([value])
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << value % 8
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + value]
        elif kind == 4:
            data[at:at] = data[at : at + value]
        elif kind == 5:
            data[at:at] = bytes([value]) * (value % 32)
        elif kind == 6:
            data[at : at + 4] = _WORDS[word % len(_WORDS)]
        else:
            data[at:] = other[where % (len(other) + 1) :]
    return bytes(data)


_LONG_NUMBER, _DEEP, _LONG = "9" * 5000, "[" * 3000, "a" * 5000
# What is written where a number, a name or a path is expected.
TEXTS = st.one_of(
    st.sampled_from(
        [
            "", " ", "-1", "0", "1", "1.5", "1e999", "-1e999", "nan", "inf", "0x10", "1_000",
            "2**9", "9" * 400, _LONG_NUMBER, "1e-320", "١٢", "²", "\0", "a\0b", "None", "True",
            "()", "{}", "..", "../..", "/etc/passwd", "a/../../b", "~", "C:\\", "\ufeff", "\u202e",
            "\\", '"', _DEEP, "(" * 300, _LONG, "%s%n", "{0}", "<script>", "\r\n", "🦊",
        ]
    ),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**30, -(2**63), 7.0, math.nan, math.inf, -0.0]),
    st.floats(),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=6), TEXTS), inner, max_size=3),
    ),
    max_leaves=6,
)


def changed(samples):
    """One of `samples` (JSON-like values) with up to three of its parts replaced or left out."""
    edits = st.lists(st.tuples(st.integers(0, 2**16), VALUES), min_size=1, max_size=3)
    return st.builds(_change, st.sampled_from(samples), edits)


def _change(sample, edits):
    value = copy.deepcopy(sample)
    for number, new in edits:
        found, kind = list(places(value)), number // 256 % 5
        if not found or number == 0:
            return new
        owner, key = found[number % len(found)]
        if kind == 1 and isinstance(owner, dict):
            del owner[key]
        elif kind == 2 and isinstance(owner, dict):
            owner[str(new)[:50]] = new
        else:
            owner[key] = new
    return value


def places(value):
    """(owner, key) of every value inside a JSON-like value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)
