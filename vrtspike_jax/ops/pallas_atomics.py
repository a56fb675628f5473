"""Adding to scattered places of an array from many programs of a Triton kernel at once."""

from typing import Any

import jax.numpy as jnp
from jax._src import core as jax_core
from jax._src import tree_util
from jax._src.lib.triton import dialect as tt_dialect
from jax._src.pallas import primitives as pallas_primitives
from jax._src.pallas.triton import lowering
from jax._src.state import discharge as state_discharge
from jax._src.state import primitives as state_primitives
from jaxtyping import Array

# `pallas.triton.atomic_add` orders every other access around each addition (acquire-release): a
# memory barrier before it, and the first-level cache emptied after it. A sum needs none of that.
_relaxed_add_p = jax_core.Primitive("relaxed_add")


def relaxed_add(ref: Any, indices: tuple[Array, ...], value: Array) -> None:
    """Adds `value` at `indices`, which may repeat, in no particular order.

    Args:
        ref: Reference to the whole array.
        indices: One integer array for each axis of `ref`, which broadcast to value's shape.
        value: Of ref's dtype, float32.
    """
    ref, transforms = state_primitives.get_ref_and_transforms(ref, indices, "relaxed_add")
    flat, tree = tree_util.tree_flatten((ref, transforms, value, None))
    _relaxed_add_p.bind(*flat, args_tree=tree)


@_relaxed_add_p.def_effectful_abstract_eval
def _abstract_eval(*avals: Any, args_tree: Any) -> Any:
    return pallas_primitives._swap_abstract_eval(*avals, args_tree=args_tree)


@lowering.register_lowering(_relaxed_add_p)
def _lower(ctx: Any, *args: Any, args_tree: Any) -> Any:
    pointer, [indexer], value, _ = args_tree.unflatten(args)
    *_, value_aval, _ = args_tree.unflatten(ctx.avals_in)
    pointer = lowering._compute_pointers_from_indices(pointer, ctx.block_infos[0], indexer)
    if isinstance(pointer, tuple):  # With the bounds of blocks, from JAX 0.12 on; here are none.
        pointer = pointer[0]
    return lowering._atomic_rmw(
        tt_dialect.RMWOp.FADD,
        pointer,
        lowering._ensure_ir_value(value, value_aval),
        semantic=tt_dialect.MemSemantic.RELAXED,
    )


@state_discharge.register_discharge_rule(_relaxed_add_p)
def _discharge(*args: Any, args_tree: Any) -> Any:
    args = args[-args_tree.num_leaves :]  # What precedes them differs between versions of JAX.
    array, [indexer], value, _ = args_tree.unflatten(args)
    result = array.at[indexer.indices].add(value)
    return (result,) + (None,) * (len(args) - 1), jnp.zeros_like(value)
