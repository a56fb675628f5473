"""Parameters as training keeps them: two groups, each one long vector, or stacks of matrices.

A VRT has hundreds of small parameters. Updated one by one they are 50,000 operations to compile
and thousands of kernels to launch; as vectors they are a few dozen. The values are the same.
An optimiser of matrices gets those of the same shape as one stack.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vrtspike_jax.models import stored

# `flow` (the modules with a learning rate of their own) and `rest`.
Groups = dict[str, Any]
# Vectors are padded with zeros to a multiple of this, so that any usual number of devices can
# share one.
MULTIPLE = 1024
# One vector (N,) a group; or a dict of stacks (N, rows, columns) of its matrices and of a `vector`
# of all else; or a list of the arrays as they are, for an optimiser with state of other shapes.
FORMS = ("vector", "stacks", "arrays")
VECTOR = "vector"
# Fewer rows or columns are tables by head, or the way in and out of the network: no matrices.
SMALLEST_MATRIX = 16


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
        form: one of `FORMS`.
    """

    treedef: jax.tree_util.PyTreeDef
    shapes: tuple[tuple[int, ...], ...]
    flow: tuple[bool, ...]
    pairs: tuple[int, ...]
    form: str

    @classmethod
    def of(cls, tree: Any, flow_modules: Sequence[str], form: str) -> "Layout":
        """The layout of a tree.

        Args:
            tree: nested dicts of float32 arrays, or their shapes.
            flow_modules: names that may occur anywhere in a parameter's path, e.g. ("spynet",).
            form: see the attribute.
        """
        shapes = tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))
        stacked = is_below(tree, ("pairs",))
        pairs = tuple(s[0] if found else 0 for s, found in zip(shapes, stacked, strict=True))
        flow = tuple(is_below(tree, flow_modules))
        return cls(jax.tree.structure(tree), shapes, flow, pairs, form)

    def pack(self, tree: Any) -> Groups:
        """A tree as groups; its pairs of blocks may be `apart`."""
        leaves = self.treedef.flatten_up_to(stored.together(tree))
        groups = {"flow": [], "rest": []}
        for leaf, key, flow in zip(leaves, self._keys(), self.flow, strict=True):
            groups["flow" if flow else "rest"].append((key, leaf))
        return {name: self._join(group) for name, group in groups.items()}

    def unpack(self, groups: Groups, apart: bool = False) -> Any:
        """The tree that `pack` was given; its pairs of blocks `apart` saves a copy of each."""
        apart = apart and self.form != "arrays"
        parts = {name: self._parts(groups[name], name == "flow", apart) for name in groups}
        leaves = (next(parts["flow" if own else "rest"]) for own in self.flow)
        tree = self.treedef.unflatten(leaves)
        return stored.apart(tree) if apart else tree

    def abstract(self, sharding: jax.sharding.Sharding) -> Any:
        """The tree's shapes, as arrays that would all be placed in one way."""
        shapes = (jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding) for s in self.shapes)
        return self.treedef.unflatten(shapes)

    def _keys(self) -> list[str]:
        """Where each leaf is in its group: a stack's rows and columns, or the vector."""
        parts = (s[1:] if n else s for s, n in zip(self.shapes, self.pairs, strict=True))
        return [_key(part) if self.form == "stacks" else VECTOR for part in parts]

    def _join(self, leaves: list[tuple[str, jax.Array | list[jax.Array]]]) -> Any:
        if self.form == "arrays":
            return [leaf for _, leaf in leaves]
        found: dict[str, list[jax.Array]] = {VECTOR: []}
        for key, leaf in leaves:
            unit = () if key == VECTOR else tuple(map(int, key.split("x")))
            parts = (part.reshape(-1, *unit) for part in jax.tree.leaves(leaf))
            found.setdefault(key, []).extend(part.astype(jnp.float32) for part in parts)
        size = sum(part.size for part in found[VECTOR])
        # An empty group is all padding: checkpoints cannot hold arrays without elements.
        found[VECTOR].append(jnp.zeros(-size % MULTIPLE if size else MULTIPLE, jnp.float32))
        group = {key: _alone(jnp.concatenate(parts)) for key, parts in found.items()}
        return group[VECTOR] if self.form == "vector" else group

    def _parts(self, group: Any, flow: bool, apart: bool) -> Iterator[Any]:
        """The leaves of a group, those of pairs `apart` as lists."""
        if self.form == "arrays":
            yield from group
            return
        group = {VECTOR: group} if self.form == "vector" else group
        group = {key: _alone(array) for key, array in group.items()}
        start = dict.fromkeys(group, 0)
        for key, shape, pairs, own in zip(
            self._keys(), self.shapes, self.pairs, self.flow, strict=True
        ):
            if own != flow:
                continue
            pairs = pairs if apart else 0
            parts = []
            for part in [shape[1:]] * pairs or [shape]:
                end = start[key] + math.prod(part) // math.prod(group[key].shape[1:])
                parts.append(jax.lax.slice_in_dim(group[key], start[key], end).reshape(part))
                start[key] = end
            yield parts if pairs else parts[0]


@functools.partial(jax.jit, static_argnums=0)
def unpack(layout: Layout, groups: Groups) -> Any:
    """`layout.unpack`, as one program."""
    return layout.unpack(groups)


def _key(shape: tuple[int, ...]) -> str:
    """Rows and columns of a matrix, as a kernel of a convolution is one; or `VECTOR`."""
    rows, columns = math.prod(shape[:-1]), shape[-1] if shape else 1
    return f"{rows}x{columns}" if min(rows, columns) >= SMALLEST_MATRIX else VECTOR


def _alone(vector: jax.Array) -> jax.Array:
    """Keeps the compiler from fusing an array's arithmetic with a thousand parts of it.

    It tries that pair by pair, for a minute, and undoes the packing where it succeeds.
    """
    return jax.lax.optimization_barrier(vector)
