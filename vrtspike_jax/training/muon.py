"""Muon for a model's matrices, Adam for everything else.

A convolution's kernel is the matrix from its receptive field to its output channels. Matrices of
the same shape are orthogonalised together, which is a dozen products a step, not a dozen for each.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

# Fewer rows or columns than this are biases, scales, tables by head, or the way in and out of the
# network: directions of little use.
SMALLEST = 16
# Root mean square of an update's entries, near that of Adam's: both take the same learning rate.
UPDATE_RMS = 0.2


def scale_by_muon_or_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """The direction of Muon for matrices, of Adam for other parameters.

    Args:
        b1: decay of the first moment, Muon's (Nesterov) and Adam's; 0..1. Muon's authors take 0.95.
        b2: decay of Adam's second moment.
        eps: Adam's epsilon.

    Returns:
        A transformation of a tree of parameters, not of one long vector. Arrays of two axes and of
        four or more are one matrix, whose columns are the last axis; those of three are a stack.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), by
    `optax.contrib.scale_by_muon`; the scale is that of Liu et al., arXiv:2502.16982, eq. 4.
    """
    direction = _on_stacks(
        optax.chain(
            scale_by_muon(
                beta=b1,
                weight_dimension_numbers=lambda stacks: {
                    name: MuonDimensionNumbers(1, 2) for name in stacks
                },
            ),
            optax.stateless(lambda stacks, _: jax.tree.map(_scaled, stacks)),
        )
    )
    return optax.partition(
        {"muon": direction, "adam": optax.scale_by_adam(b1, b2, eps)},
        lambda params: jax.tree.map(
            lambda p: "muon" if min(_matrix(p.shape)[1:]) >= SMALLEST else "adam", params
        ),
    )


def _matrix(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """How many matrices an array is, and their rows and columns."""
    if len(shape) < 2:
        return 1, 1, math.prod(shape)
    count = shape[0] if len(shape) == 3 else 1
    return count, math.prod(shape) // (count * shape[-1]), shape[-1]


def _scaled(stack: jax.Array) -> jax.Array:
    """Singular values of 1 spread an entry's mean square over the longer side."""
    return stack * (UPDATE_RMS * math.sqrt(max(stack.shape[1:])))


def _on_stacks(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` on a dict of stacks (N, rows, columns), one of all matrices of a shape."""

    def stack(tree: Any) -> dict[str, jax.Array]:
        stacks: dict[str, list[jax.Array]] = {}
        for leaf in jax.tree.leaves(tree):
            _, rows, columns = shape = _matrix(leaf.shape)
            stacks.setdefault(f"{rows}x{columns}", []).append(leaf.reshape(shape))
        return {name: jnp.concatenate(parts) for name, parts in stacks.items()}

    def unstack(stacks: dict[str, jax.Array], like: Any) -> Any:
        taken = dict.fromkeys(stacks, 0)

        def take(leaf: jax.Array) -> jax.Array:
            count, rows, columns = _matrix(leaf.shape)
            name = f"{rows}x{columns}"
            start, taken[name] = taken[name], taken[name] + count
            return stacks[name][start : start + count].reshape(leaf.shape)

        return jax.tree.map(take, like)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        directions, state = tx.update(stack(grads), state)
        return unstack(directions, grads), state

    return optax.GradientTransformation(lambda params: tx.init(stack(params)), update)
