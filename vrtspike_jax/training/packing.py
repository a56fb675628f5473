"""Parameters as training keeps them: two groups, each one long vector.

A VRT has hundreds of small parameters. Updated one by one they are 50,000 operations to compile
and thousands of kernels to launch; as vectors they are a few dozen. The values are the same.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vrtspike_jax.models import stored

# `flow` (the modules with a learning rate of their own) and `rest`.
Groups = dict[str, Any]
# Vectors are padded with zeros to a multiple of this, so that any usual number of devices can
# share one.
MULTIPLE = 1024


def is_below(tree: Any, modules: Sequence[str]) -> list[bool]:
    """For each leaf, whether it lies below a module of one of these names."""
    names = set(modules)
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [any(getattr(key, "key", None) in names for key in path) for path, _ in paths]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each parameter of a tree lies in its group.

    Attributes:
        treedef: structure of the tree.
        shapes: of its leaves.
        flow: whether each leaf is of the group `flow`.
        pairs: of stacked pairs of blocks, how many each leaf holds; else 0.
        flat: one vector (N,) a group; else a list of the arrays as they are, for an optimiser
            that looks at their rows and columns.
    """

    treedef: jax.tree_util.PyTreeDef
    shapes: tuple[tuple[int, ...], ...]
    flow: tuple[bool, ...]
    pairs: tuple[int, ...]
    flat: bool

    @classmethod
    def of(cls, tree: Any, flow_modules: Sequence[str], flat: bool) -> "Layout":
        """The layout of a tree.

        Args:
            tree: nested dicts of float32 arrays, or their shapes.
            flow_modules: names that may occur anywhere in a parameter's path, e.g. ("spynet",).
            flat: see the attribute.
        """
        shapes = tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))
        stacked = is_below(tree, ("pairs",))
        pairs = tuple(s[0] if found else 0 for s, found in zip(shapes, stacked, strict=True))
        flow = tuple(is_below(tree, flow_modules))
        return cls(jax.tree.structure(tree), shapes, flow, pairs, flat)

    def pack(self, tree: Any) -> Groups:
        """A tree as groups; its pairs of blocks may be `apart`."""
        leaves = self.treedef.flatten_up_to(stored.together(tree))
        groups: Groups = {"flow": [], "rest": []}
        for leaf, flow in zip(leaves, self.flow, strict=True):
            groups["flow" if flow else "rest"].append(leaf)
        return {name: _join(group) for name, group in groups.items()} if self.flat else groups

    def unpack(self, groups: Groups, apart: bool = False) -> Any:
        """The tree that `pack` was given; its pairs of blocks `apart` saves a copy of each."""
        apart = apart and self.flat
        parts = {name: self._parts(groups[name], name == "flow", apart) for name in groups}
        leaves = (next(parts["flow" if own else "rest"]) for own in self.flow)
        tree = self.treedef.unflatten(leaves)
        return stored.apart(tree) if apart else tree

    def abstract(self, sharding: jax.sharding.Sharding) -> Any:
        """The tree's shapes, as arrays that would all be placed in one way."""
        shapes = (jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding) for s in self.shapes)
        return self.treedef.unflatten(shapes)

    def _parts(self, group: Any, flow: bool, apart: bool) -> Iterator[Any]:
        if not self.flat:
            return iter(group)
        every = zip(self.shapes, self.pairs, self.flow, strict=True)
        mine = ((shape, pairs if apart else 0) for shape, pairs, own in every if own == flow)
        return _split(group, mine)


@functools.partial(jax.jit, static_argnums=0)
def unpack(layout: Layout, groups: Groups) -> Any:
    """`layout.unpack`, as one program."""
    return layout.unpack(groups)


def _join(leaves: list[jax.Array | list[jax.Array]]) -> jax.Array:
    leaves = jax.tree.leaves(leaves)
    size = sum(leaf.size for leaf in leaves)
    # An empty group is all padding: checkpoints cannot hold arrays without elements.
    padding = jnp.zeros(-size % MULTIPLE if size else MULTIPLE, jnp.float32)
    flat = [leaf.reshape(-1).astype(jnp.float32) for leaf in leaves]
    return _alone(jnp.concatenate([*flat, padding]))


def _split(
    vector: jax.Array, shapes: Iterable[tuple[tuple[int, ...], int]]
) -> Iterator[jax.Array | list[jax.Array]]:
    """The parts of each shape, or lists of so many parts along its first axis."""
    start, vector = 0, _alone(vector)
    for shape, count in shapes:
        parts = []
        for part in [shape[1:]] * count or [shape]:
            end = start + math.prod(part)
            parts.append(jax.lax.slice(vector, (start,), (end,)).reshape(part))
            start = end
        yield parts if count else parts[0]


def _alone(vector: jax.Array) -> jax.Array:
    """Keeps the compiler from fusing a vector's arithmetic with a thousand parts of it.

    It tries that pair by pair, for a minute, and undoes the packing where it succeeds.
    """
    return jax.lax.optimization_barrier(vector)
