"""Operations over several devices: each device runs one on its own part of the batch.

XLA splits its own operations, not a kernel of ours: it would hand all devices the whole batch, and
each would compute all of it. (Of a gather of pixels it cannot tell that no image looks into
another.) So these run under `jax.shard_map`, over the mesh that their arrays live on, which JAX
keeps in an array's type. Derivatives are defined around it, so that it only ever sees a forward or
a backward pass, and gradients of what all devices share are summed where they are made.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array, Float

from vrtspike_jax.ops import dispatch

# The axis of a mesh that splits rows of an image; all others are taken to split the batch.
ROWS = "spatial"
# As an output's axis: the sum over all devices' parts, which all of them get.
SUM = "sum"


@dataclasses.dataclass(frozen=True)
class Split:
    """How the batch of an operation is dealt out to devices.

    Attributes:
        mesh: The devices; None for one device, or where the batch stays whole.
        axes: Axes of the mesh that share the batch.
    """

    mesh: AbstractMesh | None = None
    axes: tuple[str, ...] = ()

    @property
    def parts(self) -> int:
        """Parts of the batch."""
        return _product(self.mesh, self.axes) if self.mesh else 1

    def shape(self, x: Any, axis: int = 0) -> jax.ShapeDtypeStruct:
        """Shape and type of one device's part of an array."""
        shape = list(x.shape)
        shape[axis] //= self.parts
        return jax.ShapeDtypeStruct(tuple(shape), x.dtype)

    def over(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """`function` of whole arrays, given one of a device's part of them.

        Args:
            function: Takes and returns one device's parts.
            inputs: For each argument the axis that holds the batch, or None if all devices get it
                whole; a tree prefix of the arguments, as `in_axes` of `jax.vmap`.
            outputs: For each result the axis that holds the batch, or `SUM`.
        """
        if self.mesh is None:
            return function

        def spec(axis: int | str | None) -> PartitionSpec:
            if axis in (None, SUM):
                return PartitionSpec()
            return PartitionSpec(*[None] * axis, self.axes)

        def part(*args: Any) -> Any:
            results = function(*args)
            axes = jax.tree.broadcast(outputs, results)
            return jax.tree.map(
                lambda axis, x: jax.lax.psum(x, self.axes) if axis == SUM else x, axes, results
            )

        return jax.shard_map(
            part,
            mesh=self.mesh,
            in_specs=jax.tree.map(spec, inputs, is_leaf=lambda axis: axis is None),
            out_specs=jax.tree.map(spec, outputs),
            axis_names=frozenset(self.axes),
            check_vma=False,
        )


def _mesh(arrays: Any) -> AbstractMesh | None:
    """The mesh of devices that arrays live on, where it is left to XLA to split them."""
    meshes = (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arrays))
    return next((mesh for mesh in meshes if not mesh.empty and mesh.size > 1), None)


def _product(mesh: AbstractMesh, axes: tuple[str, ...]) -> int:
    size = 1
    for axis in axes:
        size *= mesh.shape[axis]
    return size


def split_batch(operation: str, size: int, *arrays: Any) -> Split:
    """Deals `size` samples out to the devices that the arrays live on.

    Args:
        operation: Its name, for warnings.
        size: Samples, of which every device gets as many as any other.
        *arrays: The operation's arguments.
    """
    mesh = _mesh(arrays)
    if mesh is None:
        return Split()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes: tuple[str, ...] = ()
    for name, kind in types.items():
        if kind != AxisType.Auto or name == ROWS or mesh.shape[name] == 1:
            continue
        if size % _product(mesh, (*axes, name)):
            dispatch.warn_once(
                f"{operation}: {size} samples do not divide by the {mesh.shape[name]} devices of "
                f"the mesh's axis {name!r}, of which each computes all of them"
            )
            continue
        axes += (name,)
    return Split(mesh, axes) if axes else Split()


def splits_rows(*arrays: Any) -> bool:
    """Whether the devices that arrays live on share rows of an image."""
    mesh = _mesh(arrays)
    return mesh is not None and mesh.shape.get(ROWS, 1) > 1


def as_rows(x: Float[Array, "b ... c"]) -> Float[Array, "rows c"]:
    """A map as rows of channels, unless devices share the rows of its images, which must remain."""
    return x if splits_rows(x) else x.reshape(-1, x.shape[-1])


def find_kernels(name: str, implementation: str, *arrays: Any) -> ModuleType | None:
    """The kernels that an operation is to be built around, or None for XLA's operations.

    Args:
        name: Of their module, as `dispatch.kernels` takes it.
        implementation: As `dispatch.uses_kernels` takes it.
        *arrays: The operation's arguments.
    """
    if not dispatch.uses_kernels(implementation, splits_rows(*arrays)):
        return None
    return dispatch.kernels(name)
