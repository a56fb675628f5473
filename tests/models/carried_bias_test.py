"""Biases of the projections, constants where they are added, get their gradients all the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from small_models import normal

from vrtspike_jax.models.attention import TMSA
from vrtspike_jax.models.layers import Projection


@pytest.mark.parametrize("clips", [1, 2])
def test_gradients_of_a_block_s_biases_are_slopes(clips):
    block = TMSA(16, (2, 4, 4), 2, shifted=True, mut_attn=True)
    x = normal(0, clips, 3, 8, 8, 16)
    params = small_models.drawn_params(block, x)
    weights = normal(1, *x.shape)
    scales = jnp.array([[1.25, 0.5], [1.0, 2.0]])[:, :clips]

    @jax.jit
    def loss(params):
        return jnp.sum(weights * block.apply({"params": params}, x, scales))

    gradients = jax.jit(jax.grad(loss))(params)["attn"]
    for name, gradient in gradients.items():
        if name == "relative_position_bias_table":
            continue
        step = 0.05 * gradient["bias"] / jnp.linalg.norm(gradient["bias"])
        ends = []
        for sign in (1, -1):
            moved = jax.tree.map(lambda a: a, params)
            moved["attn"][name]["bias"] += sign * step
            ends.append(loss(moved))
        slope, wanted = ends[0] - ends[1], 2 * jnp.vdot(gradient["bias"], step)
        np.testing.assert_allclose(slope, wanted, rtol=0.01, err_msg=name)


def test_one_clip_is_scaled_as_several_are():
    layer, x, scale = Projection(8, 6), normal(2, 2, 5, 8), jnp.array([0.5, 3.0])
    params = small_models.drawn_params(layer, x)

    def loss(params, x, scale):
        return jnp.sum(jnp.sin(layer.apply({"params": params}, x, scale)))

    run = jax.value_and_grad(loss)
    wanted = run(params, x, scale)
    each = [run(params, x[i : i + 1], scale[i : i + 1]) for i in range(2)]
    found = jax.tree.map(jnp.add, *each)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
