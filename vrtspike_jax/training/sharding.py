"""Where arrays live: one mesh of devices with the axes data, fsdp and spatial.

The same program runs on one device or many. A batch is split over `data` and `fsdp`, its rows over
`spatial`; parameters, moments and averages are split over `fsdp` and copied elsewhere. XLA inserts
the collectives; losses, gradient norms and the decision to skip a step are global values, so all
devices take the same branch.
"""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "spatial")
# Splitting a smaller array saves less memory than its gather costs time.
SMALLEST_SHARDED = 2**14


def make_mesh(
    mesh_config: ml_collections.ConfigDict, batch_size: int | None, devices: list | None = None
) -> Mesh:
    """The mesh that `config.mesh` asks for.

    Args:
        mesh_config: `data`, `fsdp`, `spatial`: devices along each axis. `data` may be -1, which
            takes all that the other two leave.
        batch_size: global batch; `data * fsdp` must divide it. None does not check.
        devices: all devices of all hosts when None. With a fixed `data`, the first
            `data * fsdp * spatial` of them are used.

    Raises:
        ValueError: the sizes do not fit the devices or the batch.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp, spatial = (int(mesh_config[axis]) for axis in AXES)
    if fsdp < 1 or spatial < 1 or (data < 1 and data != -1):
        raise ValueError(
            f"config.mesh is data={data}, fsdp={fsdp}, spatial={spatial}: each must be at least 1 "
            "(data may be -1, all devices that are left)"
        )
    if data == -1:
        data = len(devices) // (fsdp * spatial)
    count = data * fsdp * spatial
    if count == 0 or count > len(devices) or (mesh_config.data == -1 and count != len(devices)):
        raise ValueError(
            f"config.mesh asks for data={mesh_config.data} x fsdp={fsdp} x spatial={spatial}: "
            f"that does not fit the {len(devices)} devices of this run"
        )
    if jax.process_count() > 1 and count != len(devices):
        raise ValueError(f"config.mesh uses {count} devices; several hosts must use {len(devices)}")
    if batch_size is not None and batch_size % (data * fsdp):
        raise ValueError(
            f"config.data.batch_size is {batch_size}: the {data * fsdp} devices of the axes data "
            f"and fsdp must divide it"
        )
    if spatial > jax.local_device_count():
        raise ValueError(
            f"config.mesh.spatial is {spatial}: expected at most the "
            f"{jax.local_device_count()} devices of one host"
        )
    return Mesh(np.asarray(devices[:count]).reshape(data, fsdp, spatial), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf of a state: split over `fsdp` where that pays, else copied.

    Args:
        state: a tree of arrays or of their shapes.
        mesh: from `make_mesh`.

    Returns:
        The same tree of `NamedSharding`. Of an array with at least `SMALLEST_SHARDED` elements the
        longest axis that the axis `fsdp` divides is split.
    """
    fsdp = mesh.shape["fsdp"]

    def of(leaf: Any) -> NamedSharding:
        if fsdp == 1 or np.prod(leaf.shape, dtype=np.int64) < SMALLEST_SHARDED:
            return replicated(mesh)
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if not divisible:
            return replicated(mesh)
        longest = max(divisible, key=lambda axis: leaf.shape[axis])
        spec = [None] * len(leaf.shape)
        spec[longest] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(of, state)


def batch_sharding(mesh: Mesh, leaf: Any, leading: int = 0) -> NamedSharding:
    """Batch over data and fsdp; rows over spatial where they divide.

    Args:
        mesh: from `make_mesh`.
        leaf: an array of shape (*leading, B, ...); (*leading, B, T, H, W, C) is taken for images.
        leading: axes before the batch (1 for stacked micro-batches).
    """
    spec: list[Any] = [None] * leading + [("data", "fsdp")]
    spatial = mesh.shape["spatial"]
    if spatial > 1 and len(leaf.shape) == leading + 5 and leaf.shape[leading + 2] % spatial == 0:
        spec += [None, "spatial"]
    return NamedSharding(mesh, PartitionSpec(*spec))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, leading: int = 0) -> dict[str, Any]:
    """This host's part of a batch -> global arrays on the devices.

    Args:
        batch: arrays of shape (*leading, B / hosts, ...).
        mesh: from `make_mesh`.
        leading: axes before the batch.
    """
    hosts = jax.process_count()
    placed = {}
    for name, array in batch.items():
        if array.dtype == np.int64:  # JAX keeps 32 bits; a clip's number fits.
            array = array.astype(np.int32)
        shape = list(array.shape)
        shape[leading] *= hosts
        sharding = batch_sharding(mesh, jax.ShapeDtypeStruct(tuple(shape), array.dtype), leading)
        placed[name] = jax.make_array_from_process_local_data(sharding, array, tuple(shape))
    return placed


def put_tree(tree: Any, shardings: Any) -> Any:
    """Arrays that every host has whole -> global arrays.

    Args:
        tree: arrays on the host or on one device.
        shardings: one sharding, or a tree of them.
    """
    if isinstance(shardings, NamedSharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, shardings)
