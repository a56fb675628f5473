import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import lowered

from vrtspike_jax.models.spynet import SpyNet
from vrtspike_jax.ops import conv, conv_relu, convolution, join


@pytest.fixture(params=[0, 2**15], ids=["large map", "small map"])
def small(request, monkeypatch):
    monkeypatch.setattr(convolution, "SMALL", request.param)
    return request.param > 0


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(convolution, "SMALL", 0)


def arguments(channels=8, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = (2, 9, 12, channels), (7, 7, channels, 16), (16,), (2, 9, 12, 16)
    x, kernel, bias, dy = (jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)
    return x, kernel / 20, bias, dy


def both_passes(function, implementation, *args):
    *args, dy = args
    y, pull = jax.vjp(lambda *a: function(*a, implementation), *args)
    return y, *pull(dy)


def relative_error(value, truth):
    value, truth = (np.asarray(a, np.float64) for a in (value, truth))
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))


def convolutions(module):
    """Types of the convolutions' results in a module."""
    lines = [line for line in module.splitlines() if "stablehlo.convolution" in line]
    return [line.split("->")[-1] for line in lines]


@pytest.mark.parametrize("channels", [8, 5])
def test_conv_of_joined_parts_equals_xla(channels, small):
    x, kernel, _, dy = arguments(channels)

    def joined(x, kernel, implementation):
        return conv(join([x[..., :3], x[..., 3:]], implementation), kernel, implementation)

    found = both_passes(joined, "interpret", x, kernel, dy)
    wanted = both_passes(joined, "xla", x, kernel, dy)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
    chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_joined_parts_have_full_channels_for_kernels_alone():
    x = arguments(5)[0]
    found = join([x, x[..., :1]], "interpret")
    np.testing.assert_array_equal(found, jnp.concatenate([x, x[..., :1], 0 * x[..., :2]], -1))
    assert join([x, x[..., :1]], "xla").shape[-1] == 6


def test_gradients_of_small_maps_kernels_are_precise_on_gpus(small):
    x, kernel, _, dy = arguments(dtype=jnp.bfloat16)

    def gradients(x, kernel, dy):
        return both_passes(conv, "pallas", x, kernel, dy)[1:]

    module, _ = lowered(gradients, "cuda", x, kernel, dy)
    assert any("f32>" in found for found in convolutions(module)) == small
    module, _ = lowered(gradients, "tpu", x, kernel, dy)
    assert not any("xf32>" in found for found in convolutions(module))


def test_relu_in_half_precision_is_as_precise_as_its_dtypes(large):
    found = both_passes(conv_relu, "interpret", *arguments())
    wanted = both_passes(conv_relu, "xla", *arguments())
    chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
    assert found[0].min() == 0 and 0.2 < np.mean(found[0] > 0) < 0.8
    errors = [relative_error(f, w) for f, w in zip(found, wanted, strict=True)]
    # 10 bits of mantissa forward, 7 backward; pixels where only one of both is 0 add to the latter.
    assert 1e-5 < errors[0] < 1e-3, errors
    assert all(1e-4 < e < 2e-2 for e in errors[1:3]) and errors[3] < 1e-2, errors


def test_gradients_below_half_precision_do_not_vanish(large):
    *args, dy = arguments()
    tiny = both_passes(conv_relu, "interpret", *args, dy * 1e-12)
    wanted = both_passes(conv_relu, "interpret", *args, dy)
    for found, truth in zip(tiny[1:], wanted[1:], strict=True):
        assert relative_error(found * 1e12, truth) < 1e-2


@pytest.mark.parametrize("platform,dtype", [("cuda", "f16"), ("tpu", "f32")])
def test_half_precision_is_for_large_maps_on_gpus(platform, dtype, small):
    module, _ = lowered(lambda *a: conv_relu(*a, "pallas"), platform, *arguments()[:3])
    (found,) = convolutions(module)
    assert ("f32" if small else dtype) in found


def test_float32_where_more_than_tf32_is_asked_for(large):
    with jax.default_matmul_precision("highest"):
        module, _ = lowered(lambda *a: conv_relu(*a, "pallas"), "cuda", *arguments()[:3])
    assert "f16" not in module and len(convolutions(module)) == 1


def test_flow_in_half_precision_is_that_in_float32(large):
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
