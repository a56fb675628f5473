import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from lowering import lowered

from vrtspike_jax.ops import gelu_gate, pallas_gelu_gate

# Rows that tiles divide and do not, and channels that fill pieces and do not.
SHAPES = [(2, 32, 192), (1, 3, 7, 2 * 72), (3, 5, 10), (2, 5, 2 * 288)]
NAMES = ("y", "dpacked", "dbias")


def arguments(shape, dtype=jnp.float32):
    rng = np.random.default_rng(shape[-1])
    packed, bias, dy = (rng.standard_normal(s) for s in (shape, shape[-1:], shape))
    packed, dy = (jnp.asarray(2 * v, dtype) for v in (packed, dy[..., : shape[-1] // 2]))
    return packed, jnp.asarray(bias, jnp.float32), dy


def exact(packed, bias, dy):
    """Result and gradients in float64, from the formula of the derivative."""
    with jax.enable_x64(True):
        packed, bias, dy = (jnp.asarray(np.asarray(v, np.float64)) for v in (packed, bias, dy))
        a, c = jnp.split(packed + bias, 2, axis=-1)
        slope = norm.cdf(a) + a * norm.pdf(a)
        d = jnp.concatenate([dy * c * slope, dy * a * norm.cdf(a)], axis=-1)
        found = a * norm.cdf(a) * c, d, d.sum(range(d.ndim - 1))
        return [np.asarray(v) for v in found]


def run(implementation, packed, bias, dy):
    @jax.jit
    def both(packed, bias, dy):
        y, pull = jax.vjp(lambda *args: gelu_gate(*args, implementation), packed, bias)
        return y, *pull(dy)

    return both(packed, bias, dy)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_and_reference_are_exact_forward_and_backward(shape):
    given = arguments(shape)
    for implementation in ("interpret", "xla"):
        found = run(implementation, *given)
        for name, a, b in zip(NAMES, found, exact(*given), strict=True):
            chex.assert_shape(a, b.shape)
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_is_as_exact_in_bfloat16_as_the_reference(shape):
    given = arguments(shape, jnp.bfloat16)
    found, reference = (run(implementation, *given) for implementation in ("interpret", "xla"))
    chex.assert_trees_all_equal_dtypes(found, reference)
    for a, b, c in zip(found, reference, exact(*given), strict=True):
        kernel, xla = (np.linalg.norm(np.asarray(v, np.float64) - c) for v in (a, b))
        assert kernel < 1.01 * xla + 1e-6 * np.linalg.norm(c)


def test_programs_that_walk_over_several_tiles_miss_none():
    plan = pallas_gelu_gate.Plan(37, 37, 20, block=4, steps=4, interpret=True)
    given = arguments((37, 40))
    found = pallas_gelu_gate.backward(plan, *given)
    for name, a, b in zip(NAMES[1:], found, exact(*given)[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5, err_msg=name)


def test_unknown_implementation_is_named():
    with pytest.raises(ValueError, match=r"gelu_gate.*cudnn"):
        gelu_gate(*arguments((1, 2, 4))[:2], implementation="cudnn")


def test_lowers_to_kernels_on_cuda_and_to_the_reference_elsewhere():
    packed, bias, _ = arguments((2, 8, 64))

    def step(packed, bias):
        return jax.value_and_grad(lambda *args: gelu_gate(*args, "pallas").sum(), (0, 1))(
            packed, bias
        )

    assert lowered(step, "cuda", packed, bias)[1] == 2
    assert lowered(step, "tpu", packed, bias)[1] == 0
