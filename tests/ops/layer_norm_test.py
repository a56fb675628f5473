import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import lowered

from vrtspike_jax.models.attention import TMSA
from vrtspike_jax.models.layers import LayerNorm
from vrtspike_jax.ops import layer_norm, pallas_norm
from vrtspike_jax.ops.layer_norm import EPSILON

# Shapes whose rows tiles divide and do not, and channels that fill pieces and do not.
SHAPES = [(2, 32, 96), (2, 3, 7, 32), (1, 41, 20), (3, 5, 9), (1, 2, 180), (2, 1, 1030)]


def arguments(shape, dtype=jnp.float32):
    """x, gamma, beta, and gradients of the result and of x around it."""
    rng = np.random.default_rng(shape[-1])
    vector = shape[-1:]
    x, gamma, beta, dy, around = (
        rng.standard_normal(s) for s in (shape, vector, vector, shape, shape)
    )
    x = jnp.asarray(2 * x + 3 * rng.standard_normal((*shape[:-1], 1)), dtype)
    gamma, beta = (jnp.asarray(v, jnp.float32) for v in (gamma, beta))
    return x, gamma, beta, jnp.asarray(dy, dtype), jnp.asarray(around, dtype)


def exact(x, gamma, beta, dy, around=None):
    """Result and gradients in float64, from the formula of the derivative."""
    x, gamma, beta, dy = (np.asarray(a, np.float64) for a in (x, gamma, beta, dy))
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPSILON)
    n, g = centred / deviation, gamma * dy
    dx = (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True)) / deviation
    if around is not None:
        dx += np.asarray(around, np.float64)
    rows = tuple(range(x.ndim - 1))
    return n * gamma + beta, dx, (dy * n).sum(rows), dy.sum(rows)


def run(implementation, x, gamma, beta, dy, around=None):
    @jax.jit
    def both(x, gamma, beta, gradients):
        def function(*args):
            return layer_norm(*args, with_input=around is not None, implementation=implementation)

        y, pull = jax.vjp(function, x, gamma, beta)
        return y, pull(gradients)

    if around is None:
        y, gradients = both(x, gamma, beta, dy)
    else:
        (y, same), gradients = both(x, gamma, beta, (dy, around))
        np.testing.assert_array_equal(same, x)
    return y, *gradients


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "with input"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_and_reference_are_exact_forward_and_backward(shape, residual):
    given = arguments(shape)[: 5 if residual else 4]
    wanted = exact(*given)
    for implementation in ("interpret", "xla"):
        found = run(implementation, *given)
        for name, a, b in zip(("y", "dx", "dgamma", "dbeta"), found, wanted, strict=True):
            chex.assert_shape(a, b.shape)
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_is_as_exact_in_bfloat16_as_the_reference(shape):
    given = arguments(shape, jnp.bfloat16)
    wanted = exact(*given)
    found, reference = (run(implementation, *given) for implementation in ("interpret", "xla"))
    chex.assert_trees_all_equal_dtypes(found, reference)
    for a, b, c in zip(found, reference, wanted, strict=True):
        kernel, xla = (np.linalg.norm(np.asarray(v, np.float64) - c) for v in (a, b))
        assert kernel < 1.01 * xla + 1e-6 * np.linalg.norm(c)


@pytest.mark.parametrize("rows", [16 * 2048, 16 * 2048 + 5])
def test_programs_that_walk_over_several_tiles_miss_none(rows):
    plan = pallas_norm.make_plan(rows, rows, 96)
    assert plan.steps > 1 and plan.ragged == bool(rows % 16)
    assert plan.programs <= 2 * pallas_norm.PROGRAMS
    # A narrower map of the same walk, as the interpreter copies whole arrays at each step.
    plan = pallas_norm.Plan(37, 13, 20, block=4, steps=4, interpret=True)
    x, gamma, beta, dy, around = arguments((37, 20))
    scale = jnp.array([0.0, 1.25, -2.0])
    dx, sums = pallas_norm.backward(plan, x, dy, gamma, around, scale)
    _, *wanted = exact(x, gamma, beta, dy, around)
    branch = np.repeat(scale, 13)[:37, None]
    for a, b in zip((dx, *sums), (*wanted, (branch * around).sum(0)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_bias_that_the_input_carries_gets_the_gradient_of_one_that_is_added(scaled):
    x, gamma, beta, weights, _ = arguments((3, 5, 20))
    scale = jnp.array([0.0, 1.25, -2.0]) if scaled else None

    def gradient(implementation):
        def loss(bias):
            carried = None if implementation is None else (bias, scale)
            choice = implementation or "xla"
            y, same = layer_norm(
                x, gamma, beta, with_input=True, carried=carried, implementation=choice
            )
            if implementation is None:
                same += bias if scale is None else scale[:, None, None] * bias
            return jnp.sum(weights * jnp.sin(same) + y)

        return jax.grad(loss)(jnp.zeros(20))

    for implementation in ("interpret", "xla"):
        np.testing.assert_allclose(gradient(implementation), gradient(None), rtol=1e-5, atol=1e-5)


def test_the_result_may_have_another_dtype():
    x, gamma, beta, *_ = arguments((2, 5, 32))

    def loss(x, implementation):
        y = layer_norm(x, gamma, beta, jnp.bfloat16, implementation=implementation)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    (_, y), dx = jax.value_and_grad(loss, has_aux=True)(x, "interpret")
    (_, wanted), dwanted = jax.value_and_grad(loss, has_aux=True)(x, "xla")
    assert y.dtype == wanted.dtype == jnp.bfloat16
    assert dx.dtype == jnp.float32
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_allclose(dx, dwanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform, kernels", [("cuda", 2), ("tpu", 0)])
def test_kernels_are_lowered_for_cuda_and_left_out_for_tpus(platform, kernels):
    def loss(x, gamma, beta):
        y, x = layer_norm(x, gamma, beta, with_input=True, implementation="pallas")
        return (x + jnp.sin(y)).astype(jnp.float32).sum()

    run = jax.grad(loss, argnums=(0, 1, 2))
    _, found = lowered(run, platform, *arguments((2, 40, 96), jnp.bfloat16)[:3])
    assert found == kernels


def test_layers_of_the_same_shapes_are_traced_once():
    def loss(x, gamma, beta):
        for _ in range(3):
            y, x = layer_norm(x, gamma, beta, with_input=True, implementation="interpret")
            x += jnp.sin(y)
        return x.sum()

    traced = jax.make_jaxpr(jax.grad(loss))(*arguments((2, 40, 96))[:3])
    calls = [e.params["jaxpr"] for e in traced.eqns if e.params.get("name") == "_run_backward"]
    assert len(calls) == 3 and len({id(jaxpr) for jaxpr in calls}) == 1


@pytest.mark.parametrize(
    "kernels, wanted", [("auto", True), ("cudnn", True), ("pallas", True), ("xla", False)]
)
def test_attention_blocks_hand_their_choice_on(monkeypatch, kernels, wanted):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    block = TMSA(32, (2, 4, 4), 2, False, False, kernels=kernels)
    x = jnp.ones((1, 2, 4, 4, 32))
    parameters = jax.eval_shape(block.init, jax.random.key(0), x)

    def loss(parameters):
        return block.apply(parameters, x).sum()

    traced = str(jax.make_jaxpr(jax.grad(loss))(parameters))
    # One for norm1; the feed-forward block's is part of its own kernel.
    assert traced.count("name=layer_norm_backward_kernel") == wanted


def test_the_layer_keeps_the_names_of_its_parameters():
    parameters = LayerNorm().init(jax.random.key(0), jnp.ones((2, 8)))["params"]
    chex.assert_trees_all_equal(parameters, {"scale": jnp.ones(8), "bias": jnp.zeros(8)})


def test_unknown_implementation_is_an_error():
    with pytest.raises(ValueError, match="'cudnn'"):
        layer_norm(*arguments((2, 3, 16))[:3], implementation="cudnn")
