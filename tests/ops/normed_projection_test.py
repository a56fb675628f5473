import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import lowered

from vrtspike_jax.models.attention import TMSA
from vrtspike_jax.ops import normed_projection, pallas_normed_projection
from vrtspike_jax.ops.layer_norm import EPSILON

NAMES = "y", "x", "dx", "dgamma", "dbeta", "dweight", "dbias", "dlast"
# Maps whose rows tiles divide and do not, and channels that join in pairs and do not.
SHAPES = [((2, 150, 96), 288), ((1, 4, 16, 64), 192), ((3, 5, 10, 32), 96), ((2, 40, 32), 32)]


def arguments(shape, features, dtype=jnp.float32):
    """x, gamma, beta, weight, bias, the branch's last bias and scale; gradients of both results."""
    rng = np.random.default_rng(shape[-1])
    channels = shape[-1]
    sizes = (channels,), (channels,), (channels, features), (features,), (channels,), shape[:1]
    gamma, beta, weight, bias, last, scale = (
        jnp.asarray(rng.standard_normal(s), jnp.float32) for s in sizes
    )
    x = 2 * rng.standard_normal(shape) + 3 * rng.standard_normal((*shape[:-1], 1))
    gradients = rng.standard_normal((*shape[:-1], features)), rng.standard_normal(shape)
    x, *gradients = (jnp.asarray(a, dtype) for a in (x, *gradients))
    return (x, gamma, beta, 0.1 * weight, bias, last, scale), tuple(gradients)


def run(implementation, given, gradients):
    """Results, and gradients of all but the scale."""
    *given, scale = given

    @jax.jit
    def both(given, gradients):
        def function(x, gamma, beta, weight, bias, last):
            return normed_projection(
                x, gamma, beta, weight, bias, (last, scale), implementation=implementation
            )

        results, pull = jax.vjp(function, *given)
        return *results, *pull(gradients)

    return both(given, gradients)


def exact(given, gradients):
    """The same in float64, from the formula of the derivative."""
    given, (dy, around) = jax.tree.map(lambda a: np.asarray(a, np.float64), (given, gradients))
    x, gamma, beta, weight, bias, _, scale = given
    rows = tuple(range(x.ndim - 1))
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPSILON)
    n = centred / deviation
    dn = dy @ weight.T
    g = gamma * dn
    dx = (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True)) / deviation
    dweight = np.tensordot(gamma * n + beta, dy, axes=(rows, rows))
    dlast = (scale.reshape(-1, *[1] * (x.ndim - 1)) * around).sum(rows)
    y = (gamma * n + beta) @ weight + bias
    return y, x, dx + around, (dn * n).sum(rows), dn.sum(rows), dweight, 0 * bias, dlast


@pytest.mark.parametrize("shape, features", SHAPES, ids=str)
def test_kernels_and_reference_are_exact_forward_and_backward(shape, features):
    given, gradients = arguments(shape, features)
    wanted = exact(given, gradients)
    for implementation in ("interpret", "xla"):
        found = run(implementation, given, gradients)
        for name, a, b in zip(NAMES, found, wanted, strict=True):
            chex.assert_shape(a, b.shape)
            error = np.linalg.norm(a - b)
            assert error <= 2e-6 * np.linalg.norm(b), (implementation, name)


@pytest.mark.parametrize("shape, features", SHAPES[:2], ids=str)
def test_kernels_are_as_exact_in_bfloat16_as_the_reference(shape, features):
    given, gradients = arguments(shape, features, jnp.bfloat16)
    wanted = exact(given, gradients)
    found, reference = (run(which, given, gradients) for which in ("interpret", "xla"))
    chex.assert_trees_all_equal_dtypes(found, reference)
    for name, a, b, c in zip(NAMES, found, reference, wanted, strict=True):
        kernel, xla = (np.linalg.norm(np.asarray(v, np.float64) - c) for v in (a, b))
        assert kernel <= 1.2 * xla + 1e-6 * np.linalg.norm(c), name


def test_a_program_walks_over_several_tiles():
    plans = pallas_normed_projection.make_plans(
        300, 150, 96, 288, jnp.dtype("float32"), interpret=True
    )
    assert all(p.programs < p.tiles and p.ragged for p in plans)


def test_a_bias_and_a_scale_may_be_missing():
    given, gradients = arguments((2, 20, 32), 64)
    x, gamma, beta, weight, bias, last, scale = given

    def loss(implementation, bias, scale, x, last):
        carried = last, scale
        y, x = normed_projection(
            x, gamma, beta, weight, bias, carried, implementation=implementation
        )
        return jnp.vdot(y, gradients[0]) + jnp.vdot(x, gradients[1])

    for missing in (None, scale), (bias, None):
        found, wanted = (
            jax.grad(functools.partial(loss, which, *missing), argnums=(0, 1))(x, last)
            for which in ("interpret", "xla")
        )
        chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_kernels_do_not_serve_is_layer_norm_s_and_a_product(monkeypatch):
    make = pallas_normed_projection.make_plans
    assert make(640, 640, 96, 288, jnp.dtype("bfloat16")) is None  # There is no such GPU.
    monkeypatch.setattr(pallas_normed_projection, "large_multiprocessors", lambda: 132)
    assert make(640, 640, 96, 288, jnp.dtype("bfloat16")).backward.programs == 10
    assert make(10**6, 10**6, 96, 288, jnp.dtype("bfloat16")).forward.programs == 264
    for sizes in (96, 288, "float32"), (120, 360, "bfloat16"), (80, 240, "bfloat16"):
        assert make(640, 640, *sizes[:2], jnp.dtype(sizes[2])) is None
    given, gradients = arguments((2, 9, 20), 60)
    traced = jax.make_jaxpr(functools.partial(run, "interpret"))(given, gradients)
    assert "name=layer_norm_backward_kernel" in str(traced)
    for a, b in zip(run("interpret", given, gradients), exact(given, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def loss(x, gamma, beta, weight, bias, last, scale):
    y, x = normed_projection(x, gamma, beta, weight, bias, (last, scale), implementation="pallas")
    return jnp.sin(y).astype(jnp.float32).sum() + x.astype(jnp.float32).sum()


@pytest.mark.parametrize("platform, kernels", [("cuda", 2), ("tpu", 0)])
def test_kernels_are_lowered_for_cuda_and_left_out_for_tpus(monkeypatch, platform, kernels):
    monkeypatch.setattr(pallas_normed_projection, "large_multiprocessors", lambda: 132)
    given, _ = arguments((2, 40, 96), 288, jnp.bfloat16)
    _, found = lowered(jax.grad(loss, argnums=range(6)), platform, *given)
    assert found == kernels


def test_blocks_of_the_same_shapes_are_traced_once():
    given, _ = arguments((2, 40, 32), 96)
    x, *parameters, last, scale = given

    def loss(x):
        for _ in range(3):
            y, x = normed_projection(x, *parameters, (last, scale), implementation="interpret")
            x += jnp.sin(y[..., :32])
        return x.sum()

    traced = jax.make_jaxpr(jax.grad(loss))(x)
    calls = [e.params["jaxpr"] for e in traced.eqns if e.params.get("name") == "_run_backward"]
    assert len(calls) == 3 and len({id(jaxpr) for jaxpr in calls}) == 1


@pytest.mark.parametrize("mutual", [False, True])
def test_attention_blocks_use_it_where_nothing_else_needs_what_is_normalised(mutual):
    block = TMSA(32, (2, 4, 4), 2, False, mutual, kernels="interpret")
    x = jnp.ones((1, 2, 4, 4, 32))
    parameters = jax.eval_shape(block.init, jax.random.key(0), x)

    def loss(parameters):
        return block.apply(parameters, x).sum()

    traced = str(jax.make_jaxpr(jax.grad(loss))(parameters))
    assert traced.count("name=normed_projection_backward_kernel") == (not mutual)
    assert traced.count("name=layer_norm_backward_kernel") == mutual


def test_a_block_with_kernels_has_the_reference_s_parameters_result_and_gradients():
    x = arguments((2, 2, 8, 8, 32), 32)[0][0]
    scales = jnp.array([[1.25, 0.5], [1.0, 2.0]])

    def run(kernels):
        block = TMSA(32, (2, 4, 4), 2, True, False, kernels=kernels, remat="light")
        params = block.init(jax.random.key(0), x)["params"]

        def loss(params, x):
            return jnp.sum(jnp.sin(block.apply({"params": params}, x, scales)))

        return params, jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

    chex.assert_trees_all_close(run("interpret"), run("xla"), rtol=2e-4, atol=2e-4)


def test_unknown_implementation_is_an_error():
    given, _ = arguments((2, 3, 32), 32)
    with pytest.raises(ValueError, match="'cudnn'"):
        normed_projection(*given[:5], given[5:], implementation="cudnn")
