"""What the backward pass recomputes changes its memory, never its result."""

import chex
import jax
import jax.numpy as jnp
import pytest
import small_models
from small_models import normal

from vrtspike_jax.models.attention import REMATS, TMSAG

BLOCK = {"dim": 8, "num_heads": 2, "window_size": (2, 4, 4), "mut_attn": True}
# A scanned pair, and a block alone.
DEPTH = 3
X = normal(0, 2, 2, 8, 8, 8)


def value_and_gradients(remat):
    """With stochastic depth, whose choices must be the same when they are recomputed."""
    block = BLOCK | {"remat": remat, "stochastic": True}
    group = TMSAG(DEPTH, block, drop_rates=(0.0, 0.3, 0.5))
    params = small_models.drawn_params(TMSAG(DEPTH, BLOCK, drop_rates=(0.0,) * DEPTH), X)

    def loss(params, x):
        out = group.apply({"params": params}, x, rngs={"dropout": jax.random.key(1)})
        return jnp.sum(jnp.sin(out))

    return small_models.quickly(jax.value_and_grad(loss, argnums=(0, 1)), params, X)


@pytest.fixture(scope="module")
def without():
    return value_and_gradients("none")


@pytest.mark.parametrize("remat", [remat for remat in REMATS if remat != "none"])
def test_gradients_are_the_same_whatever_is_recomputed(remat, without):
    # Gradients are up to 35.
    chex.assert_trees_all_close(value_and_gradients(remat), without, rtol=1e-5, atol=1e-4)
