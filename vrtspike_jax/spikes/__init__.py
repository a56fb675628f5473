"""Spike cameras: the `.dat` format, voxel grids, plain reconstructions and a simulator.

Raw spikes are uint8 0 or 1, [S, H, W]: S steps (readouts of the sensor). Everything here is NumPy,
so that worker processes need not load JAX; `vrtspike_jax.spikes.simulate_jax` is the exception.
"""

from vrtspike_jax.spikes.camera import (
    CameraConfig,
    CameraConfigError,
    find_camera_config,
    read_camera_config,
    write_camera_config,
)
from vrtspike_jax.spikes.dat import DatError, DatFile, MissingDatError, read_dat, write_dat
from vrtspike_jax.spikes.reconstruct import tfi, tfp
from vrtspike_jax.spikes.simulate import GRAY_WEIGHTS, SpikeCamera, integrate_and_fire, simulate
from vrtspike_jax.spikes.sizes import SizeGuess, plausible_sizes
from vrtspike_jax.spikes.voxel import (
    is_shared,
    normalize_counts,
    trained_counts,
    voxel_counts,
    voxelize,
)

__all__ = [
    "GRAY_WEIGHTS",
    "CameraConfig",
    "CameraConfigError",
    "DatError",
    "DatFile",
    "MissingDatError",
    "SizeGuess",
    "SpikeCamera",
    "find_camera_config",
    "integrate_and_fire",
    "is_shared",
    "normalize_counts",
    "plausible_sizes",
    "read_camera_config",
    "read_dat",
    "simulate",
    "tfi",
    "tfp",
    "trained_counts",
    "voxel_counts",
    "voxelize",
    "write_camera_config",
    "write_dat",
]
