"""The first parameters: random, or from files that the config names."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax.interpreters import partial_eval
from jax.sharding import Mesh

from vrtspike_jax import weights
from vrtspike_jax.convert import from_torch, read_state_dict
from vrtspike_jax.data.reels import ReelClips
from vrtspike_jax.losses import load_vgg16
from vrtspike_jax.models.spynet import SpyNet
from vrtspike_jax.training import optimizer
from vrtspike_jax.training.checkpoint_files import find_steps
from vrtspike_jax.training.checkpoints import load_for_inference, param_shapes
from vrtspike_jax.training.sharding import put_tree, replicated, state_shardings
from vrtspike_jax.training.state import TrainState, create_state


def abstract_params(model: nn.Module, config: ml_collections.ConfigDict) -> Any:
    """Shapes of the parameters, without computing anything."""
    return _trace_init(model, *_input_shapes(model, config))[1]


def random_params(model: nn.Module, config: ml_collections.ConfigDict) -> Any:
    """The parameters that `model.init` draws for `config.seed`.

    Run as a whole, `init` computes a forward pass for nothing; compiled as a whole, its hundreds of
    random draws take XLA's CPU compiler minutes. Here what is left of it without the forward pass
    runs operation by operation, each compiled once for its shape, and unoptimised.
    """
    closed, shapes = _trace_init(model, *_input_shapes(model, config))
    needed, _ = partial_eval.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True
    )
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        leaves = jax.core.eval_jaxpr(needed, closed.consts, jax.random.key(config.seed))
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def initial_state(model: nn.Module, config: ml_collections.ConfigDict, mesh: Mesh) -> TrainState:
    """The state at step 0, placed on the mesh.

    Args:
        model: from `build_model`.
        config: the whole config; `seed`, `init`, `optim`, `data` are read.
        mesh: from `make_mesh`.

    Raises:
        ValueError: a file that `config.init` names is missing or does not fit.
    """
    if config.init.params:
        params = _load_params(config.init.params, model, abstract_params(model, config))
    else:
        params = random_params(model, config)
        if config.init.spynet:
            loaded = load_spynet(config.init.spynet)
            params = replace_spynet(params, loaded, config.init.spynet)
    params = put_tree(params, state_shardings(params, mesh))
    create = _create_fn(config)
    shardings = state_shardings(jax.eval_shape(create, params), mesh)
    return jax.jit(create, out_shardings=shardings)(params)


def abstract_state(model: nn.Module, config: ml_collections.ConfigDict, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of `initial_state`, without computing anything."""
    shapes = jax.eval_shape(_create_fn(config), abstract_params(model, config))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def fixed_inputs(
    config: ml_collections.ConfigDict, mesh: Mesh, clips: Any = None
) -> dict[str, Any]:
    """What a step needs besides the state and the batch.

    Args:
        config: the whole config.
        mesh: from `make_mesh`.
        clips: the source of the training clips.

    Returns:
        `vgg`, VGG16's weights, if the loss has a perceptual part; `reels`, the pictures that clips
        are cut from, if `clips` are `ReelClips`.

    Raises:
        ValueError: the file is missing or not VGG16.
    """
    fixed = {}
    if config.loss.vgg_weight:
        fixed["vgg"] = load_vgg16(config.loss.vgg_path, tuple(config.loss.vgg_layers))
    if isinstance(clips, ReelClips):
        fixed["reels"] = clips.bank.pictures
    return put_tree(fixed, replicated(mesh))


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


def _input_shapes(
    model: nn.Module, config: ml_collections.ConfigDict
) -> tuple[tuple[int, ...], ...]:
    data = config.data
    side = data.crop_size or 64
    frames = (1, data.clip_length, side, side, 3)
    voxels = (1, data.clip_length, side, side, data.voxel.bins)
    return (frames, voxels) if hasattr(model, "spike_bins") else (frames,)


@functools.lru_cache(maxsize=4)
def _trace_init(model: nn.Module, *inputs: tuple[int, ...]) -> tuple[Any, Any]:
    """`model.init` as a jaxpr of the key, and the shapes of the parameters."""

    def init(key: jax.Array) -> Any:
        return model.init(key, *(jnp.zeros(shape) for shape in inputs))["params"]

    return jax.make_jaxpr(init, return_shape=True)(jax.random.key(0))


def _create_fn(config: ml_collections.ConfigDict) -> Callable[[Any], TrainState]:
    tx = optimizer.gradient_transformation(config.optim)
    return lambda params: create_state(params, tx, config.optim)


def _load_params(path: str, model: nn.Module, wanted: Any) -> Any:
    path = str(weights.find(path))
    if Path(path).is_dir():
        if not (find_steps(Path(path) / "checkpoints") or (Path(path) / "meta").is_dir()):
            raise ValueError(f"config.init.params={path!r}: no checkpoint in this directory")
        return _same_shapes(load_for_inference(path)[1], wanted, path)
    if not Path(path).is_file():
        raise ValueError(
            f"initial weights not found: looked for {Path(path).absolute()} "
            "(config.init.params; '' starts from random weights)"
        )
    if weights.is_released(path):
        return _same_shapes(weights.load_weights(path)[1], wanted, path)
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
