"""From a batch as it is stored (uint8) to what the model takes (float32), inside jit."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float32

from vrtspike_jax.data.geometry import spike_size


def model_inputs(
    batch: Mapping[str, Array], log: bool = True, mean: float = 0.0, std: float = 1.0
) -> tuple[
    Float32[Array, "*b T H W 3"], Float32[Array, "*b T Hs Ws K"], Float32[Array, "*b T H W 3"]
]:
    """Scales frames to 0..1 and normalises spike counts. Pure; meant to be jitted with its caller.

    A batch crosses from host to device as uint8, a quarter of the bytes of float32.

    Args:
      batch: `blur`, `sharp` uint8 (..., T, H, W, 3) and `spikes` counts (..., T, Hs, Ws, K),
        uint8, or float32 where exposures have different steps.
      log: compress counts with log(1 + count), before mean and std.
      mean, std: normalisation of the voxels; `std` is positive.

    Returns:
      (frames, voxels, sharp), all float32, frames and sharp in 0..1.

    Raises:
      ValueError: std <= 0.
    """
    if not std > 0:
        raise ValueError(f"found voxel std {std}, wanted a positive number")
    voxels = jnp.asarray(batch["spikes"], jnp.float32)
    if log:
        voxels = jnp.log1p(voxels)
    return _unit(batch["blur"]), (voxels - mean) / std, _unit(batch["sharp"])


def _unit(frames: Array) -> jax.Array:
    return jnp.asarray(frames, jnp.float32) / 255.0


def spike_crop_size(
    data_config: ml_collections.ConfigDict, height: int, width: int
) -> tuple[int, int]:
    """The size (Hs, Ws) of the spikes that belong to frames, or crops, of height x width."""
    return spike_size(height, width, tuple(data_config.spike_scale))
