"""Parameters from the published PyTorch models' state dicts, and back."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from vrtspike_jax.convert.names import (
    TorchName,
    is_buffer,
    to_numpy,
    torch_axes,
    torch_names,
)
from vrtspike_jax.models.attention import relative_position_index, sine_position_encoding
from vrtspike_jax.models.spynet import MEAN, STD, SpyNet
from vrtspike_jax.models.vrt import VRT
from vrtspike_jax.models.vrtspike import VRTWithSpike

Params = dict[str, Any]
# Keys under which checkpoints in circulation keep their state dict, the better one first.
WRAPPERS = ("params_ema", "params", "state_dict", "model")
# What DataParallel and torch.compile put before names.
PREFIXES = ("module.", "_orig_mod.")
LISTED = 8


def smallest_input(model: nn.Module) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of the smallest input that a model takes, enough to know its parameters."""
    if isinstance(model, SpyNet):
        return (jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),) * 2
    if not isinstance(model, VRT | VRTWithSpike):
        raise ValueError(
            f"model is a {type(model).__name__}, which has no published counterpart; want VRT, "
            "VRTWithSpike or SpyNet"
        )
    vrt = model if isinstance(model, VRT) else model.vrt
    frames = max(2, vrt.pa_frames // 2 + 1) if vrt.pa_frames else vrt.img_size[0]
    size = (1, frames, 8 * vrt.window_size[1], 8 * vrt.window_size[2])
    channels = vrt.in_chans + vrt.nonblind_denoising
    clip = jax.ShapeDtypeStruct((*size, channels), jnp.float32)
    if model is vrt:
        return (clip,)
    return clip, jax.ShapeDtypeStruct((*size, model.spike_bins), jnp.float32)


def parameter_shapes(model: nn.Module) -> Mapping[tuple[str, ...], tuple[int, ...]]:
    """Shapes of a model's parameters by path, without computing anything."""
    return _traced_shapes(_hashable(model))


def _hashable(model: nn.Module) -> nn.Module:
    """The same module with tuples for lists, which published settings have."""
    fields = {}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if isinstance(value, list):
            fields[field.name] = tuple(value)
        elif isinstance(value, nn.Module) and field.name != "parent":
            fields[field.name] = _hashable(value)
    return model.clone(**fields)


@functools.lru_cache(maxsize=16)
def _traced_shapes(model: nn.Module) -> Mapping[tuple[str, ...], tuple[int, ...]]:
    # Tracing a full model takes seconds, which is why the last ones are kept.
    variables = jax.eval_shape(model.init, jax.random.key(0), *smallest_input(model))
    flat = flatten_dict(variables["params"])
    return MappingProxyType({path: leaf.shape for path, leaf in flat.items()})


def _plan(
    shapes: Mapping[tuple[str, ...], tuple[int, ...]],
) -> Iterator[tuple[tuple[str, ...], list[TorchName], tuple[int, ...], tuple[int, ...]]]:
    """Yields (path, state dict entries, permutation, one entry's shape) of every parameter."""
    for path, shape in shapes.items():
        pairs = 0
        if "last" in path:
            group = path[: path.index("last")]
            stacked = (s for p, s in shapes.items() if p[: len(group) + 1] == (*group, "pairs"))
            pairs = next(stacked, (0,))[0]
        names = list(torch_names(path, shape, pairs))
        own = shape if names[0].layer is None else shape[1:]
        axes = torch_axes(path[-1], len(own))
        yield path, names, axes, tuple(own[a] for a in axes)


def published_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes, in PyTorch's layout, of the parameters that a model's state dict has."""
    return {
        name: shape for _, names, _, shape in _plan(parameter_shapes(model)) for name, _ in names
    }


def unwrap(state_dict: Mapping[str, Any], buffers: bool = False) -> dict[str, np.ndarray]:
    """Finds the parameters (and buffers) in the wrappers that checkpoints in circulation have.

    Raises:
        ValueError: an entry is neither a tensor nor an array.
    """
    for key in WRAPPERS:
        if isinstance(state_dict.get(key), Mapping):
            return unwrap(state_dict[key], buffers)
    found = {}
    for name, value in state_dict.items():
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if buffers or not is_buffer(name):
            if not hasattr(value, "shape"):
                raise ValueError(f"{name} is a {type(value).__name__}, want a tensor")
            found[name] = to_numpy(value)
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def from_torch(state_dict: Mapping[str, Any], model: nn.Module) -> Params:
    """Parameters of `model` from a published state dict.

    Args:
        state_dict: Tensors or arrays by name, in PyTorch's layout; may be wrapped in `params`,
            `params_ema` (preferred), `state_dict` or `model`, and names may start with `module.`.
            Buffers are ignored.
        model: `VRT`, `VRTWithSpike` or `SpyNet` with the fields that the weights were made for.

    Returns:
        The parameter tree, float32, for `model.apply({"params": params}, ...)`.

    Raises:
        ValueError: one that lists every missing, unexpected and mis-shaped name.
    """
    given = unwrap(state_dict)
    params, missing, wrong, used = {}, [], [], set()
    for path, names, axes, shape in _plan(parameter_shapes(model)):
        parts = []
        for name, _ in names:
            used.add(name)
            if name not in given:
                missing.append(name)
            elif given[name].shape != shape:
                wrong.append(f"{name} has {given[name].shape}, want {shape}")
            else:
                parts.append(given[name].transpose(np.argsort(axes)))
        if len(parts) == len(names):
            stacked = parts[0] if names[0].layer is None else np.stack(parts)
            params[path] = jnp.asarray(stacked)
    unexpected = sorted(set(given) - used)
    problems = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", wrong))
        if names
    ]
    if problems:
        raise ValueError(f"state dict does not fit {type(model).__name__}: " + "; ".join(problems))
    return unflatten_dict(params)


def to_torch(params: Params, model: nn.Module, buffers: bool = False) -> dict[str, np.ndarray]:
    """The state dict that `from_torch` turns into `params`: its exact inverse.

    Args:
        params: Parameter tree of `model`.
        model: `VRT`, `VRTWithSpike` or `SpyNet`.
        buffers: Also writes the buffers, so that PyTorch's `load_state_dict` accepts it strictly.

    Returns:
        Arrays by name, in PyTorch's layout.

    Raises:
        ValueError: if `params` are not those of `model`.
    """
    flat, shapes = flatten_dict(params), parameter_shapes(model)
    if {p: np.shape(v) for p, v in flat.items()} != shapes:
        odd = sorted("/".join(p) for p in flat.keys() ^ shapes.keys())
        odd += ["/".join(p) for p in flat.keys() & shapes if np.shape(flat[p]) != shapes[p]]
        raise ValueError(f"params do not fit {type(model).__name__}: {_some(odd)}")
    state = {}
    for path, names, axes, _ in _plan(shapes):
        value = np.asarray(flat[path])
        for name, layer in names:
            part = value if layer is None else value[layer]
            state[name] = np.ascontiguousarray(part.transpose(axes))
    return state | (_buffers(state, model) if buffers else {})


def _buffers(state: Mapping[str, np.ndarray], model: nn.Module) -> dict[str, np.ndarray]:
    """The buffers of the published modules that hold `state`."""
    found: dict[str, np.ndarray] = {}
    spynet = [n.split("basic_module")[0] for n in state if "basic_module.0.basic_module.0.w" in n]
    for prefix in spynet:
        found[f"{prefix}mean"] = MEAN.reshape(1, 3, 1, 1)
        found[f"{prefix}std"] = STD.reshape(1, 3, 1, 1)
    if isinstance(model, SpyNet):
        return found
    window = (model if isinstance(model, VRT) else model.vrt).window_size
    spans = (2 * window[1] - 1) * (2 * window[2] - 1)
    table = "relative_position_bias_table"
    for name, value in state.items():
        if name.endswith(table):
            prefix = name.removesuffix(table)
            frames = (value.shape[0] // spans + 1) // 2
            index = relative_position_index((frames, *window[1:]))
            found[f"{prefix}relative_position_index"] = index
            if f"{prefix}qkv_mut.weight" in state:
                dim = state[f"{prefix}qkv_mut.weight"].shape[1]
                found[f"{prefix}position_bias"] = sine_position_encoding(*window[1:], dim)[None]
    return found
