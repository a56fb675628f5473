"""Attention over the frames of a clip, at each pixel on its own."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

IMPLEMENTATIONS = ("auto", "products", "sums")
# Most pairs of frames for which "auto" takes sums, and for which their gradient is by sums too:
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
    transposes of everything; sums over broadcast products read the arrays as they are.

    Args:
        q: Queries, already scaled.
        k: Keys.
        v: Values.
        bias: Added to the logits.
        drop: Applied to the weights (b, p, heads, t, s): dropout.
        implementation: "products" is the reference, by batched matrix products; "sums" by
            broadcast multiplication; "auto" is "sums" on GPUs for short clips without dropout.
            (On CPUs sums are no faster, and XLA of JAX 0.10 gets those with a bias wrong.)

    Returns:
        Attended values in v's dtype; sums and softmax are float32.

    Raises:
        ValueError: for an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"temporal_attention: implementation {implementation!r}, want one of {IMPLEMENTATIONS}"
        )
    if implementation == "auto":
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
    bias: Array | None,
    drop: Callable[[Array], Array] | None,
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
    attend = _sums if few else functools.partial(_products, drop=None)
    return jax.vjp(attend, *saved)[1](dout)


_attend_by_sums.defvjp(lambda *args: (_sums(*args), args), _backward_by_sums)
