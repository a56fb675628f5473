"""Pre-norm gated feed-forward block: LayerNorm, GEGLU and the residual sum in one operation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vrtspike_jax.ops import pallas_mlp

IMPLEMENTATIONS = ("auto", "xla", "pallas")


def _reference(x, branch_scale, gamma, beta, w11, b11, w12, b12, w2, b2):
    dtype = x.dtype
    y = x.astype(jnp.float32)
    y -= y.mean(axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + pallas_mlp.EPSILON)
    y = (y * gamma + beta).astype(dtype)
    gate = jax.nn.gelu(y @ w11.astype(dtype) + b11.astype(dtype), approximate=False)
    y = gate * (y @ w12.astype(dtype) + b12.astype(dtype))
    y = y @ w2.astype(dtype) + b2.astype(dtype)
    if branch_scale is not None:
        y *= branch_scale.reshape((-1,) + (1,) * (x.ndim - 1)).astype(dtype)
    return x + y


def gated_mlp(
    x: Float[Array, "b ... c"],
    gamma: Float[Array, " c"],
    beta: Float[Array, " c"],
    w11: Float[Array, "c hidden"],
    b11: Float[Array, " hidden"],
    w12: Float[Array, "c hidden"],
    b12: Float[Array, " hidden"],
    w2: Float[Array, "hidden c"],
    b2: Float[Array, " c"],
    branch_scale: Float[Array, " b"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "b ... c"]:
    """x + branch_scale * fc2(gelu(fc11(n)) * fc12(n)) with n = LayerNorm(x), VRT's `Mlp_GEGLU`.

    Args:
        x: Features; their dtype is the compute dtype.
        gamma: LayerNorm's scale.
        beta: LayerNorm's bias.
        w11: Weight of the gate.
        b11: Bias of the gate.
        w12: Weight of the value.
        b12: Bias of the value.
        w2: Weight of the output.
        b2: Bias of the output.
        branch_scale: Factor of the branch for each sample, for stochastic depth; it gets no
            gradient from the kernel. None means 1.
        implementation: "xla" is the reference. "pallas" is one GPU kernel each way that keeps
            nothing but `x` for the backward pass. "auto" is the reference.

    Returns:
        Features of x's shape and dtype.

    Raises:
        ValueError: for an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"gated_mlp: implementation {implementation!r}, want {IMPLEMENTATIONS}")
    weights = gamma, beta, w11, b11, w12, b12, w2, b2
    # The kernel equals the reference in Pallas' interpreter; no GPU has timed it yet.
    if implementation in ("auto", "xla"):
        return _reference(x, branch_scale, *weights)
    if branch_scale is None:
        branch_scale = jnp.ones(x.shape[0], jnp.float32)
    rows = x.size // x.shape[-1]
    plan = pallas_mlp.Plan(
        rows,
        rows // x.shape[0],
        *w11.shape,
        interpret=jax.default_backend() == "cpu",
    )
    out = pallas_mlp.gated_mlp(plan, x.reshape(rows, -1), branch_scale, *weights)
    return out.reshape(x.shape)
