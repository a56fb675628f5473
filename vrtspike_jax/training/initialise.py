"""The first parameters: random, or from files that the config names."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from vrtspike_jax.convert import from_torch

from vrtspike_jax.losses import load_vgg16
from vrtspike_jax.models.spynet import SpyNet
from vrtspike_jax.training import optimizer
from vrtspike_jax.training.checkpoint_files import find_steps
from vrtspike_jax.training.checkpoints import load_for_inference, param_shapes
from vrtspike_jax.training.sharding import put_tree, state_shardings
from vrtspike_jax.training.state import TrainState, create_state


def abstract_params(model: nn.Module, config: ml_collections.ConfigDict) -> Any:
    """Shapes of the parameters, without computing anything."""
    return jax.eval_shape(_init_fn(model, config), jax.random.key(0))


def initial_state(model: nn.Module, config: ml_collections.ConfigDict, mesh: Mesh) -> TrainState:
    """The state at step 0, placed on the mesh.

    Args:
        model: from `build_model`.
        config: the whole config; `seed`, `init`, `optim`, `data` are read.
        mesh: from `make_mesh`.

    Raises:
        ValueError: a file that `config.init` names is missing or does not fit.
    """
    create, key = _create_fn(model, config), jax.random.key(config.seed)
    shardings = state_shardings(jax.eval_shape(create, key), mesh)
    state = jax.jit(create, out_shardings=shardings)(key)
    if config.init.params:
        state = _with_params(state, _load_params(config.init.params, model, state.params))
    elif config.init.spynet:
        loaded = load_spynet(config.init.spynet)
        state = _with_params(state, replace_spynet(state.params, loaded, config.init.spynet))
    return state


def abstract_state(model: nn.Module, config: ml_collections.ConfigDict, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of `initial_state`, without computing anything."""
    shapes = jax.eval_shape(_create_fn(model, config), jax.random.key(0))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def fixed_inputs(config: ml_collections.ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """What the loss needs besides the state: VGG16's weights, if it has a perceptual part.

    Raises:
        ValueError: the file is missing or not VGG16.
    """
    if not config.loss.vgg_weight:
        return {}
    weights = load_vgg16(config.loss.vgg_path, tuple(config.loss.vgg_layers))
    return {"vgg": put_tree(weights, jax.sharding.NamedSharding(mesh, jax.P()))}


def load_spynet(path: str | os.PathLike) -> Any:
    """SpyNet's parameters from a file under VRT's names.

    Raises:
        ValueError: the file is missing, damaged, or holds other shapes.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"SpyNet weights not found: looked for {Path(path).absolute()}. Convert the published "
            "`spynet_sintel_final-3d2a1287.pth` with `vrtspike convert`, point config.init.spynet "
            "at the result, or set config.init.spynet='' to train the flow from random weights."
        )
    return from_torch(read_state_dict(path), SpyNet())


def replace_spynet(params: Any, spynet: Any, path: str) -> Any:
    """`params` with the flow network's part taken from `spynet`."""
    if "spynet" in params:
        return {**params, "spynet": _same_shapes(spynet, params["spynet"], path)}
    if "spynet" in params.get("vrt", {}):
        inner = _same_shapes(spynet, params["vrt"]["spynet"], path)
        return {**params, "vrt": {**params["vrt"], "spynet": inner}}
    raise ValueError("config.init.spynet is set, but the model has no flow network")


def _init_fn(model: nn.Module, config: ml_collections.ConfigDict) -> Callable[[jax.Array], Any]:
    data = config.data
    side = data.crop_size or 64
    frames = jax.ShapeDtypeStruct((1, data.clip_length, side, side, 3), jnp.float32)
    voxels = jax.ShapeDtypeStruct((1, data.clip_length, side, side, data.voxel.bins), jnp.float32)
    inputs = (frames, voxels) if hasattr(model, "spike_bins") else (frames,)

    def init(key: jax.Array) -> Any:
        # Under jit nothing of the forward pass is left but the parameters.
        return model.init(key, *(jnp.zeros(i.shape, i.dtype) for i in inputs))["params"]

    return init


def _create_fn(
    model: nn.Module, config: ml_collections.ConfigDict
) -> Callable[[jax.Array], TrainState]:
    tx = optimizer.gradient_transformation(config.optim)
    init = _init_fn(model, config)
    return lambda key: create_state(init(key), tx, config.optim.ema_decay > 0)


def _load_params(path: str, model: nn.Module, wanted: Any) -> Any:
    if Path(path).is_dir():
        if not (find_steps(Path(path) / "checkpoints") or (Path(path) / "meta").is_dir()):
            raise ValueError(f"config.init.params={path!r}: no checkpoint in this directory")
        return _same_shapes(load_for_inference(path)[1], wanted, path)
    if not Path(path).is_file():
        raise ValueError(
            f"initial weights not found: looked for {Path(path).absolute()} "
            "(config.init.params; '' starts from random weights)"
        )
    return from_torch(read_state_dict(path), model)


def _same_shapes(params: Any, wanted: Any, path: str) -> Any:
    found, needed = param_shapes(params), param_shapes(wanted)
    if found != needed:
        name = next(n for n in sorted(set(found) | set(needed)) if found.get(n) != needed.get(n))
        raise ValueError(
            f"{path}: parameter {name} is {found.get(name, 'absent')} there, "
            f"wanted {needed.get(name, 'absent')}"
        )
    return params


def _with_params(state: TrainState, params: Any) -> TrainState:
    params = put_tree(params, jax.tree.map(lambda leaf: leaf.sharding, state.params))
    ema = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, ema_params=ema)
