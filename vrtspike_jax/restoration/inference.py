"""The function that is compiled for restoring: stored numbers in, restored frames out."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Num

from vrtspike_jax.models import stored


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
    """A model's parameters in the form that costs least to use.

    Layers' kernels and biases have the compute dtype, into which every step would convert them, but
    for those of motion, which is computed in float32. Where pairs of blocks are unrolled, each has
    its own.
    """
    params = stored.in_compute_dtype(params, stored.compute_dtype(model), mlp=("kernel",))
    return stored.apart(params) if stored.unrolls(model) else params
