"""From `config.model` to a module. Modules themselves take plain fields, never a config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from vrtspike_jax.models import VRT, VRTWithSpike
from vrtspike_jax.models.fields import check_divides, check_fields
from vrtspike_jax.models.unet import ShiftUNet, UNetSpike
from vrtspike_jax.names import suggestion

# Fields that stand beside `vrt` and are its own.
SHARED = ("dtype", "remat", "kernels")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def build_model(config: ml_collections.ConfigDict | Mapping[str, Any]) -> nn.Module:
    """The network that `config.model` describes; training, scoring and inference all call this.

    Args:
        config: `config.model`: `name` (a key of `MODELS`), `dtype` (a key of `DTYPES`), `remat`,
            `kernels`, and the fields of the module of that name; those of the backbone under `vrt`.

    Returns:
        An unbound linen module.

    Raises:
        ValueError: an unknown name, dtype or field, or a value that a field cannot have.
    """
    if not isinstance(config, Mapping | ml_collections.ConfigDict):
        raise ValueError(f"config.model is {config!r:.100}: expected a ConfigDict")
    fields = {key: _plain(value) for key, value in config.items()}
    name = fields.pop("name", None)
    if not isinstance(name, str) or name not in MODELS:
        known = ", ".join(map(repr, MODELS))
        raise ValueError(f"config.model.name is {name!r:.100}: expected one of {known}")
    dtype = fields.get("dtype", "float32")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise ValueError(f"config.model.dtype is {dtype!r:.100}: expected one of {known}")
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
    check_fields(cls, fields, where)
    return cls(**fields)


def _vrt(fields: dict[str, Any]) -> nn.Module:
    backbone = _backbone(fields)
    for key in set(fields) - set(SHARED):
        raise ValueError(f"config.model.{key} is no field of a model without a spike branch")
    return _check_heads(construct(VRT, backbone | fields, "config.model.vrt"))


def _vrt_spike(fields: dict[str, Any]) -> nn.Module:
    shared = {key: fields[key] for key in SHARED if key in fields}
    fields["vrt"] = _check_heads(construct(VRT, _backbone(fields) | shared, "config.model.vrt"))
    known = {field.name for field in dataclasses.fields(VRTWithSpike)}
    for key in shared.keys() - known:
        del fields[key]  # the spike branch takes it from its backbone
    model = construct(VRTWithSpike, fields, "config.model")
    if model.alignment_reach > model.spike_bins:
        raise ValueError(
            f"config.model.alignment_reach is {model.alignment_reach}: expected 0 to "
            f"{model.spike_bins}, the spike_bins"
        )
    for name in ("tsa_heads", "fuse_heads"):
        check_divides(
            getattr(model, name),
            tuple(model.channels_per_scale),
            f"config.model.{name}",
            "channels_per_scale",
        )
    return model


def _backbone(fields: dict[str, Any]) -> dict[str, Any]:
    backbone = fields.pop("vrt", {})
    if not isinstance(backbone, dict):
        raise ValueError(f"config.model.vrt is {backbone!r:.100}: expected a ConfigDict")
    return backbone


def _check_heads(vrt: VRT) -> VRT:
    where = "config.model.vrt"
    if not (len(vrt.depths) == len(vrt.embed_dims) == len(vrt.num_heads) >= 8):
        raise ValueError(
            f"{where}.depths, embed_dims and num_heads have {len(vrt.depths)}, "
            f"{len(vrt.embed_dims)} and {len(vrt.num_heads)} entries: expected the same number, "
            "at least 8"
        )
    dims = tuple(vrt.embed_dims)
    check_divides(tuple(vrt.num_heads), dims, f"{where}.num_heads", "embed_dims")
    if vrt.pa_frames:
        groups = f"{where}.deformable_groups"
        check_divides(vrt.deformable_groups, dims[:7], groups, "the first seven embed_dims")
    return vrt


def _plain(value: Any) -> Any:
    """ConfigDicts to dicts, lists to tuples (module fields must be hashable)."""
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


MODELS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "vrt_spike": _vrt_spike,
    "vrt": _vrt,
    "shift_unet": functools.partial(construct, ShiftUNet, where="config.model"),
    "unet_spike": functools.partial(construct, UNetSpike, where="config.model"),
}
