"""Parameters as the optimiser sees them: two groups, each one long vector.

A VRT has hundreds of small parameters. Updated one by one they are 50,000 operations to compile
and thousands of kernels to launch; as vectors they are a few dozen. The values are the same.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# `flow` (the modules with a learning rate of their own) and `rest`.
Groups = dict[str, Any]
# Vectors are padded with zeros to a multiple of this, so that any usual number of devices can
# share one.
MULTIPLE = 1024


def is_flow(tree: Any, flow_modules: Sequence[str]) -> list[bool]:
    """For each leaf, whether it lies below a module named in `flow_modules`."""
    names = set(flow_modules)
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [any(getattr(key, "key", None) in names for key in path) for path, _ in paths]


def pack(tree: Any, flow_modules: Sequence[str], flat: bool) -> Groups:
    """A tree as groups.

    Args:
        tree: nested dicts of float32 arrays.
        flow_modules: names that may occur anywhere in a parameter's path, e.g. ("spynet",).
        flat: one vector (N,) a group; else a list of the arrays as they are, for an optimiser
            that looks at their rows and columns.
    """
    flow = is_flow(tree, flow_modules)
    leaves = jax.tree.leaves(tree)
    groups = {
        "flow": [leaf for leaf, own in zip(leaves, flow, strict=True) if own],
        "rest": [leaf for leaf, own in zip(leaves, flow, strict=True) if not own],
    }
    return {name: _join(group) for name, group in groups.items()} if flat else groups


def unpack(groups: Groups, like: Any, flow_modules: Sequence[str]) -> Any:
    """The tree that `pack` was given; `like` has its structure and shapes."""
    flow = is_flow(like, flow_modules)
    shapes = [leaf.shape for leaf in jax.tree.leaves(like)]
    parts = {}
    for name, own in (("flow", True), ("rest", False)):
        group = groups[name]
        if not isinstance(group, list):
            mine = [shape for shape, is_own in zip(shapes, flow, strict=True) if is_own == own]
            group = _split(group, mine)
        parts[own] = iter(group)
    return jax.tree.unflatten(jax.tree.structure(like), [next(parts[own]) for own in flow])


def _join(leaves: list[jax.Array]) -> jax.Array:
    size = sum(leaf.size for leaf in leaves)
    # An empty group is all padding: checkpoints cannot hold arrays without elements.
    padding = jnp.zeros(-size % MULTIPLE if size else MULTIPLE, jnp.float32)
    return _alone(jnp.concatenate([leaf.reshape(-1) for leaf in leaves] + [padding]))


def _split(vector: jax.Array, shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    sizes = [int(np.prod(shape)) for shape in shapes]
    starts, vector = np.cumsum([0, *sizes]), _alone(vector)
    return [
        jax.lax.slice(vector, (start,), (start + size,)).reshape(shape)
        for start, size, shape in zip(starts, sizes, shapes, strict=False)
    ]


def _alone(vector: jax.Array) -> jax.Array:
    """Keeps the compiler from fusing a vector's arithmetic with a thousand parts of it.

    It tries that pair by pair, for a minute, and undoes the packing where it succeeds.
    """
    return jax.lax.optimization_barrier(vector)
