import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import lowered

from vrtspike_jax.models.spynet import SpyNet
from vrtspike_jax.ops import conv_relu


def arguments():
    rng = np.random.default_rng(0)
    shapes = (2, 9, 12, 8), (7, 7, 8, 16), (16,), (2, 9, 12, 16)
    x, kernel, bias, dy = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
    return x, kernel / 20, bias, dy


def both_passes(implementation, x, kernel, bias, dy):
    y, pull = jax.vjp(lambda *a: conv_relu(*a, implementation), x, kernel, bias)
    return y, *pull(dy)


def relative_error(value, truth):
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))


def test_result_and_gradients_are_as_precise_as_their_dtypes():
    found = both_passes("interpret", *arguments())
    wanted = both_passes("xla", *arguments())
    chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
    assert found[0].min() == 0 and 0.2 < np.mean(found[0] > 0) < 0.8
    errors = [relative_error(f, w) for f, w in zip(found, wanted, strict=True)]
    # 10 bits of mantissa forward, 7 backward; pixels where only one of both is 0 add to the latter.
    assert 1e-5 < errors[0] < 1e-3, errors
    assert all(1e-4 < e < 2e-2 for e in errors[1:3]) and errors[3] < 1e-2, errors


def test_gradients_below_half_precision_do_not_vanish():
    *args, dy = arguments()
    small = both_passes("interpret", *args, dy * 1e-12)
    wanted = both_passes("interpret", *args, dy)
    for found, truth in zip(small[1:], wanted[1:], strict=True):
        assert relative_error(found * 1e12, truth) < 1e-2


@pytest.mark.parametrize("platform,dtype", [("cuda", "f16"), ("tpu", "f32")])
def test_dtype_follows_the_platform(platform, dtype):
    module, _ = lowered(lambda *a: conv_relu(*a, "pallas"), platform, *arguments()[:3])
    assert [dtype in line.split("->")[-1] for line in convolutions(module)] == [True]


def test_float32_where_more_than_tf32_is_asked_for():
    with jax.default_matmul_precision("highest"):
        module, _ = lowered(lambda *a: conv_relu(*a, "pallas"), "cuda", *arguments()[:3])
    assert "f16" not in module and len(convolutions(module)) == 1


def convolutions(module):
    return [line for line in module.splitlines() if "stablehlo.convolution" in line]


def test_flow_in_half_precision_is_that_in_float32():
    rng = np.random.default_rng(1)
    frames = jnp.asarray(rng.uniform(size=(2, 1, 64, 64, 3)), jnp.float32)
    params = SpyNet().init(jax.random.key(0), *frames)
    params = jax.tree.map(
        lambda p: p + 0.02 * jax.random.normal(jax.random.key(1), p.shape), params
    )
    half, full = (SpyNet(kind).apply(params, *frames) for kind in ("interpret", "xla"))
    for found, wanted in zip(half, full, strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
        assert np.abs(wanted).max() > 0.01 and 0 < relative_error(found, wanted) < 1e-2
