"""The function that is compiled for restoring: stored numbers in, restored frames out."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Num

_MOTION = {"spynet", "spike_aligner"}


def to_unit(frames: Num[Array, "*any"]) -> Float32[Array, "*any"]:
    """Integers to [0, 1] by their type's largest value; floats as they are."""
    if jnp.issubdtype(frames.dtype, jnp.integer):
        return frames.astype(jnp.float32) / jnp.iinfo(frames.dtype).max
    return frames.astype(jnp.float32)


def make_restore_step(
    model: nn.Module, log: bool = True, mean: float = 0.0, std: float = 1.0
) -> Callable[[Any, jax.Array, jax.Array], Float32[Array, "B T H W 3"]]:
    """Builds (params, frames [B,T,H,W,3], voxels [B,T,Hs,Ws,K]) -> restored [B,T,H,W,3] in [0, 1].

    Frames may be uint8, uint16 or float in [0, 1]. Integer voxels are counts and get the training's
    treatment (log1p if `log`, then (v - mean) / std) on the device, where it is free; float voxels
    have had it. A model without a spike branch takes no notice of them. Parameters are the model's,
    or what `store_params` made of them.
    """

    def restore_step(params, frames, voxels):
        params = _stacked(params)
        if jnp.issubdtype(voxels.dtype, jnp.integer):
            voxels = voxels.astype(jnp.float32)
            voxels = ((jnp.log1p(voxels) if log else voxels) - mean) / std
        inputs = (to_unit(frames), voxels) if hasattr(model, "spike_bins") else (to_unit(frames),)
        restored = model.apply({"params": params}, *inputs)
        return jnp.clip(restored.astype(jnp.float32), 0.0, 1.0)

    return restore_step


def for_inference(model: nn.Module) -> nn.Module:
    """The model without what only training needs: nothing is computed again."""
    if hasattr(model, "vrt"):
        return model.clone(vrt=for_inference(model.vrt))
    return model.clone(remat="none") if hasattr(model, "remat") else model


def store_params(model: nn.Module, params: Any) -> Any:
    """A model's parameters in the form that costs least to use; what they mean stays the same.

    Layers' kernels and biases have the compute dtype, into which every step would convert them, but
    for those of motion, which is computed in float32. Where pairs of blocks are unrolled, each has
    its own.
    """
    backbone = getattr(model, "vrt", model)
    params = _converted(params, getattr(backbone, "dtype", jnp.float32))
    return _unstacked(params) if getattr(backbone, "unroll", False) else params


def _converted(params: Any, dtype: jnp.dtype, biases: bool = True) -> Any:
    if not isinstance(params, dict):
        return params
    layer = ("kernel", "bias") if biases else ("kernel",)
    converted = {}
    for name, value in params.items():
        if "kernel" in params and name in layer:
            converted[name] = value.astype(dtype)
        elif name in _MOTION:
            converted[name] = value
        else:  # `gated_mlp` adds its biases in float32
            converted[name] = _converted(value, dtype, biases and name != "mlp")
    return converted


def _unstacked(params: Any) -> Any:
    """Each "pairs", whose leaves have an axis of pairs, as a tuple of its pairs."""
    if not isinstance(params, dict):
        return params
    found = {name: _unstacked(value) for name, value in params.items()}
    if "pairs" in params:
        length = len(jax.tree.leaves(params["pairs"])[0])
        found["pairs"] = tuple(
            jax.tree.map(lambda leaf, i=i: leaf[i], params["pairs"]) for i in range(length)
        )
    return found


def _stacked(params: Any) -> Any:
    """Inverse of `_unstacked`; the compiler drops it together with the slices that unroll."""
    if isinstance(params, tuple):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    if not isinstance(params, dict):
        return params
    return {name: _stacked(value) for name, value in params.items()}
