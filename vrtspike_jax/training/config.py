"""Checks a whole config before anything else happens: names, kinds and ranges of its fields."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import ml_collections

from vrtspike_jax.data.config import check_data_config
from vrtspike_jax.losses.vgg import LAYERS
from vrtspike_jax.models import VRT
from vrtspike_jax.models.build import DTYPES, build_model
from vrtspike_jax.names import suggestion
from vrtspike_jax.training.optimizer import OPTIMIZERS


@dataclasses.dataclass(frozen=True)
class _Field:
    """What a field may hold: `wanted` says it in words, `allows` decides."""

    wanted: str
    allows: Callable[[Any], bool]


def _whole(low: int) -> _Field:
    return _Field(f"a whole number, at least {low}", lambda v: _is_int(v) and v >= low)


def _number(low: float, high: float = float("inf"), *, open_low: bool = False) -> _Field:
    ends = f"{'(' if open_low else '['}{low:g}, {high:g})"
    return _Field(
        f"a number in {ends}",
        lambda v: _is_number(v) and (v > low if open_low else v >= low) and v < high,
    )


def _choice(*names: str) -> _Field:
    return _Field("one of " + ", ".join(map(repr, names)), lambda v: v in names)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TEXT = _Field("a string", lambda v: isinstance(v, str))
_FLAG = _Field("True or False", lambda v: isinstance(v, bool))

FIELDS: dict[str, dict[str, _Field]] = {
    "": {
        "seed": _Field("a whole number in [0, 2**32)", lambda v: _is_int(v) and 0 <= v < 2**32),
        "num_steps": _whole(1),
        "log_every_steps": _whole(1),
        "checkpoint_every_steps": _whole(1),
        "eval_every_steps": _whole(1),
        "tensorboard": _FLAG,
        "profile_steps": _whole(0),
        "keep_checkpoints": _whole(1),
    },
    "optim": {
        "name": _choice(*OPTIMIZERS),
        "learning_rate": _number(0, open_low=True),
        "warmup_steps": _whole(0),
        "b1": _number(0, 1),
        "b2": _number(0, 1),
        "eps": _number(0, open_low=True),
        "weight_decay": _number(0),
        "clip_norm": _number(0),
        "accumulation_steps": _whole(1),
        "flow_modules": _Field(
            "a tuple of module names",
            lambda v: isinstance(v, list | tuple) and all(isinstance(n, str) for n in v),
        ),
        "flow_lr_scale": _number(0),
        "freeze_flow_steps": _whole(-1),
        "ema_decay": _number(0, 1),
        "max_skipped_in_row": _whole(1),
        "loss_spike_factor": _number(1, open_low=True),
    },
    "loss": {
        "charbonnier_weight": _number(0, open_low=True),
        "charbonnier_delta": _number(0, open_low=True),
        "vgg_weight": _number(0),
        "vgg_layers": _Field(
            f"a tuple of {', '.join(LAYERS)}",
            lambda v: (
                isinstance(v, list | tuple)
                and len(v) > 0
                and all(isinstance(n, str) and n in LAYERS for n in v)
            ),
        ),
        "vgg_path": _TEXT,
        "vgg_dtype": _choice(*DTYPES),
    },
    "eval": {
        "max_clips": _whole(0),
        "tile_size": _Field(
            "0 (whole frames), or a multiple of 8, at least 64",
            lambda v: _is_int(v) and (v == 0 or (v >= 64 and v % 8 == 0)),
        ),
        "tile_overlap": _whole(0),
        "strips": _whole(0),
        "checkpoint": _choice("best", "latest"),
    },
    "mesh": {
        "data": _Field("-1 or at least 1", lambda v: _is_int(v) and (v == -1 or v >= 1)),
        "fsdp": _whole(1),
        "spatial": _whole(1),
    },
    "init": {"params": _TEXT, "spynet": _TEXT},
}
SECTIONS = ("model", "data", *(name for name in FIELDS if name))


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks every field; builds the model once, which checks `config.model`.

    Raises:
        ValueError: an unknown or missing field, or a value out of its range; names the field, the
            value found and what was wanted.
    """
    _check_names(config, set(FIELDS[""]) | set(SECTIONS), "config")
    for section, fields in FIELDS.items():
        where = f"config.{section}" if section else "config"
        values = config[section] if section else config
        if section:
            _check_names(values, set(fields), where)
        for name, field in fields.items():
            if not field.allows(values[name]):
                raise ValueError(
                    f"{where}.{name} is {values[name]!r:.100}: expected {field.wanted}"
                )
    check_data_config(config.data)
    _check_clip(build_model(config.model), config)
    bins = config.model.get("spike_bins", config.data.voxel.bins)
    if bins != config.data.voxel.bins:
        raise ValueError(
            f"config.model.spike_bins is {bins}, but config.data.voxel.bins is "
            f"{config.data.voxel.bins}: expected the same number"
        )


def _check_clip(model: nn.Module, config: ml_collections.ConfigDict) -> None:
    """Whether the model takes crops and tiles of these sizes; whole frames are seen to later."""
    backbone = getattr(model, "vrt", model)
    if not isinstance(backbone, VRT):
        return
    frames, *sides = backbone.smallest_clip()
    if config.data.clip_length < frames:
        raise ValueError(
            f"config.data.clip_length is {config.data.clip_length}: expected at least {frames}, "
            "which config.model.vrt needs"
        )
    for name, size in (
        ("data.crop_size", config.data.crop_size),
        ("eval.tile_size", config.eval.tile_size),
    ):
        if size and (size % 8 or size < max(sides)):
            raise ValueError(
                f"config.{name} is {size}: expected 0 (whole frames), or a multiple of 8, at least "
                f"the {max(sides)} that config.model.vrt.window_size needs"
            )


def _check_names(values: Any, known: set[str], where: str) -> None:
    if not isinstance(values, ml_collections.ConfigDict):
        raise ValueError(f"{where} is {values!r:.100}: expected a ConfigDict")
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{where}.{unknown[0]} is no known field{suggestion(unknown[0], known)}")
    missing = sorted(known - set(values))
    if missing:
        raise ValueError(f"{where}.{missing[0]} is missing")


def to_plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as nested dicts that survive JSON unchanged (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def changes(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """What differs between two plain configs, a line each: `optim.learning_rate: 0.1 -> 0.2`."""
    lines = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += changes(before, after, f"{where}{key}.")
        elif before != after:
            lines.append(f"{where}{key}: {before!r} -> {after!r}")
    return lines
