"""Checks what a config says of a model, so that a wrong value is named before anything is built."""

import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn

from vrtspike_jax.models.vrtspike import FUSIONS

MAX_NUMBER = 2**20
MAX_ENTRIES = 256
# Least values of whole numbers, and of each in a sequence, where it is not 0.
_LEAST = dict.fromkeys(
    (
        *("upscale", "in_chans", "out_chans", "img_size", "window_size", "depths", "embed_dims"),
        *("num_heads", "deformable_groups", "spike_bins", "channels_per_scale", "tsa_heads"),
        *("fuse_heads", "temporal_strides", "spatial_strides", "max_batch_tokens"),
        *("channels", "blocks", "spike_blocks", "shift_scale"),
    ),
    1,
)
# Least and largest values of other numbers.
_RANGES = {
    "mul_attn_ratio": (0.0, 1.0),
    "mlp_ratio": (1 / 64, 64.0),
    "tsa_mlp_ratio": (1 / 64, 64.0),
    "fuse_mlp_ratio": (1 / 64, 64.0),
    "drop_path_rate": (0.0, 0.99),
    "tsa_dropout": (0.0, 0.99),
    "fuse_dropout": (0.0, 0.99),
    "time_slope": (0.0, 64.0),
}
_LENGTHS = {
    **{"window_size": 3, "img_size": 3, "channels_per_scale": 4, "channels": 4},
    **{"encoder_blocks": 3, "decoder_blocks": 3},
}
# What a string may be.
_CHOICES = {"fusion": FUSIONS}


def check_fields(cls: type[nn.Module], fields: Mapping[str, Any], where: str) -> None:
    """Compares values with the annotations of a module's fields, and with their ranges.

    Args:
        cls: the module's class.
        fields: values of some of its fields; sequences as tuples.
        where: the config section, for messages.

    Raises:
        ValueError: names the field, the value found and what was wanted.
    """
    hints = typing.get_type_hints(cls)
    for name, value in fields.items():
        wanted = _wanted(name, value, hints[name])
        if wanted:
            raise ValueError(f"{where}.{name} is {value!r:.100}: expected {wanted}")


def check_divides(divisor: Any, values: Sequence[int], where: str, of: str) -> None:
    """Checks that heads or groups split channels evenly.

    Args:
        divisor: one number, or one for each of `values`.
        values: channels.
        where: the divisor's field, for messages.
        of: the channels' field.

    Raises:
        ValueError: one does not.
    """
    each = divisor if isinstance(divisor, tuple) else (divisor,) * len(values)
    for number, value in zip(each, values, strict=False):
        if value % number:
            raise ValueError(f"{where} is {divisor!r}: expected divisors of {of}, {values!r}")


def _wanted(name: str, value: Any, hint: Any) -> str:
    """What the field should be, in words, if `value` is not."""
    options = typing.get_args(hint)
    if type(None) in options:
        if value is None:
            return ""
        hint = next(option for option in options if option is not type(None))
    if name in _CHOICES:
        choices = _CHOICES[name]
        return "" if value in choices else f"one of {', '.join(map(repr, choices))}"
    if hint in (bool, str):
        return "" if isinstance(value, hint) else {bool: "True or False", str: "a string"}[hint]
    if hint is int:
        least = _LEAST.get(name, 0)
        return "" if _is_whole(value, least) else f"a whole number, {least} to {MAX_NUMBER}"
    if hint is float:
        low, high = _RANGES.get(name, (-math.inf, math.inf))
        right = isinstance(value, int | float) and not isinstance(value, bool)
        right = right and low <= value <= high
        return "" if right else f"a number of {low:g} to {high:g}"
    if typing.get_origin(hint) is Sequence and typing.get_args(hint) == (int,):
        return _sequence_wanted(name, value)
    return ""


def _sequence_wanted(name: str, value: Any) -> str:
    least, length = _LEAST.get(name, 0), _LENGTHS.get(name)
    right = (
        isinstance(value, tuple)
        and len(value) <= MAX_ENTRIES
        and (length is None or len(value) == length)
        and all(_is_whole(number, least) for number in value)
    )
    count = f"{length} " if length else ""
    return "" if right else f"{count}whole numbers, {least} to {MAX_NUMBER} each"


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_NUMBER
