"""Spike cameras: the `.dat` format, voxel grids, plain reconstructions and a simulator.

Raw spikes are uint8 0 or 1, [S, H, W]: S steps (readouts of the sensor). Everything here is NumPy,
so that worker processes need not load JAX; `vrtspike_jax.spikes.simulate_jax` is the exception.
"""

from vrtspike_jax.spikes.dat import DatError, DatFile, MissingDatError, read_dat, write_dat
from vrtspike_jax.spikes.voxel import normalize_counts, voxel_counts, voxelize

__all__ = [
    "DatError",
    "DatFile",
    "MissingDatError",
    "normalize_counts",
    "read_dat",
    "voxel_counts",
    "voxelize",
    "write_dat",
]
