"""Parameters in the form that costs least to use; what they mean stays the same."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_MOTION = {"spynet", "spike_aligner"}  # computed in float32


def compute_dtype(model: nn.Module) -> jnp.dtype:
    """The dtype that a model computes in, as far as it has one."""
    return jnp.dtype(getattr(getattr(model, "vrt", model), "dtype", jnp.float32))


def unrolls(model: nn.Module) -> bool:
    """Whether a model applies its pairs of blocks one by one, each with its own parameters."""
    return getattr(getattr(model, "vrt", model), "unroll", False)


def in_compute_dtype(params: Any, dtype: jnp.dtype, mlp: tuple[str, ...] = ()) -> Any:
    """Layers' kernels and biases in the dtype into which every use would convert them.

    Args:
        params: a model's parameters, or some of them.
        dtype: from `compute_dtype`.
        mlp: what is converted of the feed-forward blocks (`gated_mlp`), which have biases in
            float32 and give gradients in it.
    """

    def convert(tree: Any, names: tuple[str, ...]) -> Any:
        if isinstance(tree, tuple):
            return tuple(convert(own, names) for own in tree)
        if not isinstance(tree, dict):
            return tree
        converted = {}
        for name, value in tree.items():
            if "kernel" in tree and name in names:
                converted[name] = value.astype(dtype)
            elif name in _MOTION:
                converted[name] = value
            else:
                converted[name] = convert(value, mlp if name == "mlp" else names)
        return converted

    return convert(params, ("kernel", "bias"))


def apart(params: Any) -> Any:
    """Each "pairs", whose leaves have an axis of pairs (or are lists), as a tuple of its pairs."""
    if not isinstance(params, dict):
        return params
    found = {name: apart(value) for name, value in params.items()}
    if "pairs" in found:
        pairs = found["pairs"]
        length = len(jax.tree.leaves(pairs, is_leaf=_is_list)[0])
        found["pairs"] = tuple(
            jax.tree.map(lambda leaf, i=i: leaf[i], pairs, is_leaf=_is_list) for i in range(length)
        )
    return found


def together(params: Any) -> Any:
    """Inverse of `apart`, with lists for leaves."""
    if isinstance(params, tuple):
        return jax.tree.map(lambda *own: list(own), *params)
    if not isinstance(params, dict):
        return params
    return {name: together(value) for name, value in params.items()}


def _is_list(leaf: Any) -> bool:
    return isinstance(leaf, list)
