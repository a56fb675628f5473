"""From `config.model` to a module. Modules themselves take plain fields, never a config."""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from vrtspike_jax.models import VRT, VRTWithSpike

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def build_model(config: ml_collections.ConfigDict) -> nn.Module:
    """The network that `config.model` describes; training, scoring and inference all call this.

    Args:
        config: `config.model`: `name` (a key of `MODELS`), `dtype` (a key of `DTYPES`), `remat`,
            and the fields of the module of that name; those of the backbone under `vrt`.

    Returns:
        An unbound linen module.

    Raises:
        ValueError: an unknown name, dtype or field.
    """
    fields = {key: _plain(value) for key, value in config.items()}
    name = fields.pop("name", None)
    if name not in MODELS:
        known = ", ".join(map(repr, MODELS))
        raise ValueError(f"config.model.name is {name!r}: expected one of {known}")
    dtype = fields.get("dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f"config.model.dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    fields["dtype"] = DTYPES[dtype]
    return MODELS[name](fields)


def construct(cls: type[nn.Module], fields: Mapping[str, Any], where: str) -> nn.Module:
    """`cls(**fields)`, with an error that names an unknown field and the nearest known one."""
    known = {field.name for field in dataclasses.fields(cls)} - {"parent", "name"}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(
            f"{where}.{unknown[0]} is no field of {cls.__name__}{suggestion(unknown[0], known)}"
        )
    return cls(**fields)


def suggestion(wrong: str, known: Collection[str]) -> str:
    """`; did you mean 'x'?`, or the known names where none is near."""
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def _vrt(fields: dict[str, Any]) -> nn.Module:
    backbone = fields.pop("vrt", {})
    for key in set(fields) - {"dtype", "remat"}:
        raise ValueError(f"config.model.{key} is no field of a model without a spike branch")
    return construct(VRT, backbone | fields, "config.model.vrt")


def _vrt_spike(fields: dict[str, Any]) -> nn.Module:
    shared = {key: fields[key] for key in ("dtype", "remat") if key in fields}
    fields["vrt"] = construct(VRT, fields.get("vrt", {}) | shared, "config.model.vrt")
    known = {field.name for field in dataclasses.fields(VRTWithSpike)}
    for key in shared.keys() - known:
        del fields[key]  # the spike branch takes it from its backbone
    return construct(VRTWithSpike, fields, "config.model")


def _plain(value: Any) -> Any:
    """ConfigDicts to dicts, lists to tuples (module fields must be hashable)."""
    if isinstance(value, ml_collections.ConfigDict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


MODELS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {"vrt_spike": _vrt_spike, "vrt": _vrt}
