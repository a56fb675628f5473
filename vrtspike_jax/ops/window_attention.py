"""Multi-head attention inside windows, with a position bias and shift regions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Swin and VRT add this to the logits of tokens that the cyclic shift brought together.
OTHER_REGION = -100.0


def window_attention(
    q: Float[Array, "m n heads d"],
    k: Float[Array, "m n heads d"],
    v: Float[Array, "m n heads d"],
    bias: Float[Array, "heads n n"] | None = None,
    regions: Int[Array, "windows n"] | None = None,
) -> Float[Array, "m n heads d"]:
    """Scaled dot-product attention of every window on its own: the reference implementation.

    Args:
        q: Queries of M windows of N tokens, already scaled; M is a multiple of `windows`, which
            varies fastest.
        k: Keys.
        v: Values.
        bias: Added to the logits of every window, float32.
        regions: Region number of each token of each window of one image; tokens of different
            regions do not attend to each other. None means one region.

    Returns:
        Attended values in v's dtype; softmax is float32.
    """
    m, n, heads, _ = q.shape
    logits = jnp.einsum("mqhd,mkhd->mhqk", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits += bias.astype(jnp.float32)
    if regions is not None:
        apart = regions[:, :, None] != regions[:, None, :]
        logits = logits.reshape(-1, regions.shape[0], heads, n, n)
        logits += jnp.where(apart, OTHER_REGION, 0.0)[:, None]
        logits = logits.reshape(m, heads, n, n)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("mhqk,mkhd->mqhd", weights, v)
