"""Attention over the frames of a clip, at each pixel on its own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrtspike_jax.ops import dispatch
from vrtspike_jax.ops.partition import SUM, Split, find_kernels, split_batch

IMPLEMENTATIONS = ("auto", "xla", "pallas", "interpret", "products", "sums")
# Most pairs of frames for which "xla" takes sums, and for which their gradient is by sums too:
# beyond, that is faster by products.
LARGEST_SUM, LARGEST_SUM_GRADIENT = 64, 12


def temporal_attention(
    q: Float[Array, "b t p heads d"],
    k: Float[Array, "b s p heads d"],
    v: Float[Array, "b s p heads d"],
    bias: Float[Array, "heads t s"] | None = None,
    drop: Callable[[Array], Array] | None = None,
    implementation: str = "auto",
) -> Float[Array, "b t p heads d"]:
    """Scaled dot-product attention over S frames, for each pixel and head.

    Matrix units are idle on products of 5 x 24 by 24 x 5 numbers, and the layout they want costs
    transposes of everything; sums over broadcast products, and kernels, read the arrays as they
    are.

    Args:
        q: Queries, already scaled.
        k: Keys.
        v: Values.
        bias: Added to the logits.
        drop: Applied to the weights (b, p, heads, t, s): dropout.
        implementation: "products" is the reference, by batched matrix products; "sums" by
            broadcast multiplication; "xla" is "sums" on GPUs for short clips without dropout, and
            "products" elsewhere. (On CPUs sums are no faster, and XLA of JAX 0.10 gets those with
            a bias wrong.) "pallas" is one CUDA kernel each way for short clips without dropout,
            and "xla" for others. "auto" is "pallas" on CUDA GPUs and "xla" elsewhere; "interpret"
            runs the kernels on the CPU, for tests.

    Returns:
        Attended values in v's dtype; sums and softmax are float32.

    Raises:
        ValueError: for an unknown implementation.
    """
    dispatch.check("temporal_attention", implementation, IMPLEMENTATIONS)
    kernels = find_kernels("pallas_temporal", implementation, q, k, v) if drop is None else None
    if kernels:
        interpret = implementation == "interpret"
        split = split_batch("temporal_attention", q.shape[0], q, k, v)
        parts = (split.shape(a) for a in (q, k, v))
        plan = kernels.make_plan(*parts, bias is not None, interpret)
        if plan is not None:
            return _fused(plan, split, q, k, v, *(() if bias is None else (bias,)))
    if implementation not in ("products", "sums"):
        few = q.shape[1] * k.shape[1] <= LARGEST_SUM
        sums = few and drop is None and jax.default_backend() == "gpu"
        implementation = "sums" if sums else "products"
    if implementation == "products":
        return _products(q, k, v, bias, drop)
    if drop is not None:
        raise ValueError("temporal_attention: 'sums' takes no dropout; want 'products'")
    return _attend_by_sums(q, k, v, bias)


def _products(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    drop: Callable[[Array], Array] | None = None,
) -> Array:
    logits = jnp.einsum("btpnd,bspnd->bpnts", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits += bias
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    if drop is not None:
        weights = drop(weights)
    return jnp.einsum("bpnts,bspnd->btpnd", weights, v)


def _sums(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    q, k, values = (a.astype(jnp.float32) for a in (q, k, v))
    logits = jnp.sum(q[:, :, None] * k[:, None], axis=-1)
    if bias is not None:
        logits += bias.transpose(1, 2, 0)[:, :, None]
    weights = jax.nn.softmax(logits, axis=2).astype(v.dtype).astype(jnp.float32)
    return jnp.sum(weights[..., None] * values[:, None], axis=2).astype(v.dtype)


@jax.custom_vjp
def _attend_by_sums(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    """Keeps its inputs alone: weights and float32 copies cost less to compute again."""
    return _sums(q, k, v, bias)


def _backward_by_sums(saved: tuple, dout: Array) -> tuple:
    few = saved[0].shape[1] * saved[1].shape[1] <= LARGEST_SUM_GRADIENT
    attend = _sums if few else _products
    return jax.vjp(attend, *saved)[1](dout)


_attend_by_sums.defvjp(lambda *args: (_sums(*args), args), _backward_by_sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(plan: Any, split: Split, *args: Array) -> Array:
    """By the kernels on CUDA, by products elsewhere; the choice falls at lowering.

    Args:
        plan: The kernels' plan, for one device's part.
        split: Of the batch.
        *args: Queries, keys, values and, if there is one, the bias: all that is kept.
    """
    return _run_forward(plan, split, *args)


_fused.defvjp(
    lambda plan, split, *args: (_run_forward(plan, split, *args), args),
    lambda plan, split, saved, dout: _run_backward(plan, split, dout, *saved),
)


# Jitted, so that blocks of the same shapes are traced and lowered once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_forward(plan: Any, split: Split, *args: Array) -> Array:
    cuda = functools.partial(dispatch.kernels("pallas_temporal").forward, plan)
    run = functools.partial(dispatch.on_cuda, cuda, _products, interpret=plan.interpret)
    return split.over(run, (0, 0, 0, None)[: len(args)], 0)(*args)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_backward(plan: Any, split: Split, dout: Array, *args: Array) -> tuple[Array, ...]:
    def otherwise(dout: Array, *args: Array) -> tuple[Array, ...]:
        return jax.vjp(_products, *args)[1](dout)

    cuda = functools.partial(dispatch.kernels("pallas_temporal").backward, plan)
    run = functools.partial(dispatch.on_cuda, cuda, otherwise, interpret=plan.interpret)
    inputs, outputs = (0, 0, 0, 0, None), (0, 0, 0, SUM)
    return split.over(run, inputs[: 1 + len(args)], outputs[: len(args)])(dout, *args)
