"""What the backward pass recomputes changes its memory, and neither results nor gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import drawn_params, normal

from vrtspike_jax.models.attention import REMATS, TMSAG
from vrtspike_jax.models.stages import Stage


def _group(remat, kernels="xla", depth=1, unroll=False):
    block = {
        "dim": 32,
        "num_heads": 2,
        "window_size": (2, 4, 8),
        "mut_attn": True,
        "remat": remat,
        "kernels": kernels,
    }
    return TMSAG(depth, block, unroll)


def _clip():
    return jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 32))


def _loss(group):
    def loss(params, x):
        # The first clip's feed-forward branch is dropped.
        scales = jnp.array([[[1 / 0.7, 1 / 0.7], [0, 1 / 0.7]]])
        y = group.apply({"params": params}, x, scales)
        return jnp.sum(jnp.sin(y))

    return jax.value_and_grad(loss, argnums=(0, 1))


@pytest.fixture(scope="module")
def params():
    return jax.jit(_group("none").init)(jax.random.key(1), _clip())["params"]


@pytest.fixture(scope="module")
def wanted(params):
    return jax.jit(_loss(_group("none")))(params, _clip())


@pytest.mark.parametrize(
    "remat, kernels", [(r, "xla") for r in REMATS[1:]] + [("light", "interpret")]
)
def test_loss_and_gradients_do_not_depend_on_it(remat, kernels, params, wanted):
    found = jax.jit(_loss(_group(remat, kernels)))(params, _clip())
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_light_runs_no_attention_kernel_again_and_block_does(params):
    def launches(remat):
        traced = jax.make_jaxpr(_loss(_group(remat, "interpret")))(params, _clip())
        return str(traced).count("name=forward_kernel")

    assert launches("light") == launches("none") < launches("block")


def test_unrolled_pairs_have_the_loop_s_parameters_results_and_gradients():
    def run(unroll):
        group = _group("light", depth=5, unroll=unroll)
        init = jax.jit(lambda x: group.init(jax.random.key(1), x)["params"])
        params = init(_clip())

        def loss(params, x):
            return jnp.sum(jnp.sin(group.apply({"params": params}, x)))

        return params, jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, _clip())

    looped, unrolled = run(False), run(True)
    assert jax.tree.leaves(looped[0]["pairs"])[0].shape[0] == 2
    for a, b in zip(jax.tree.leaves(unrolled), jax.tree.leaves(looped), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_light_keeps_the_offsets_of_warping_and_the_features_before_and_block_does_not():
    x, flow = normal(0, 1, 2, 8, 8, 8), [normal(1, 1, 1, 8, 8, 2)]

    def run(remat):
        block = {"dim": 8, "num_heads": 2, "remat": remat}
        stage = Stage(8, 1, 1.0, (2, 4, 4), block, "none", 2, 2, 10.0)
        params = drawn_params(stage, x, flow, flow)

        def loss(params):
            return jnp.sum(jnp.sin(stage.apply({"params": params}, x, flow, flow)))

        convolutions = str(jax.make_jaxpr(jax.grad(loss))(params)).count("conv_general_dilated[")
        return convolutions, jax.jit(jax.grad(loss))(params)

    (light, found), (block, gradients), (_, wanted) = map(run, ("light", "block", "none"))
    assert light == block - 4
    for gradient in (found, gradients):
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
