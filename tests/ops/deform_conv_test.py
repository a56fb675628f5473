import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.ops import (
    deform_conv2d,
    flow_guided_deform_conv,
    flow_warp,
    quad_size,
    raw_channels,
)


def _normal(seed, *shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def _value_and_gradients(call, *arguments):
    @jax.jit
    def run(arguments):
        out, pull = jax.vjp(call, *arguments)
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return out, pull(weights)

    return jax.tree.leaves(run(arguments))


def _assert_equal(actual, wanted):
    assert len(actual) == len(wanted)
    for a, b in zip(actual, wanted, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize(
    "size, groups, channels, sources", [((1, 8, 8), 4, 24, 1), ((2, 3, 5), 4, 40, 2)]
)
def test_flow_guided_kernels_equal_the_reference(size, groups, channels, sources):
    quad = quad_size(groups, sources, channels)
    x, raw, flow, weight, bias = _normal(
        0,
        (*size, channels),
        (*size, groups // quad, 9, 3, quad),
        (*size, sources, 2),
        (3, 3, channels // sources, 16),
        (16,),
    )
    # Far outside, beyond the range of integers, and off the edge.
    flow = (3 * flow).at[0, 0, :3, 0].set(jnp.array([[-1e20, 2.0], [3.0, 1e9], [-2.5, 0.0]]))

    def call(implementation):
        def convolve(*arguments):
            return flow_guided_deform_conv(*arguments, 4.0, implementation=implementation)

        return _value_and_gradients(convolve, x, raw, flow, weight, bias)

    wanted = call("xla")
    _assert_equal(call("interpret"), wanted)
    _assert_equal(call("auto"), wanted)


def test_deform_conv2d_by_kernels_equals_the_reference():
    x, offset, mask, weight = _normal(
        1, (1, 4, 8, 16), (1, 4, 8, 2, 9, 2), (1, 4, 8, 2, 9), (3, 3, 8, 8)
    )

    def call(implementation):
        def convolve(*arguments):
            return deform_conv2d(*arguments, implementation=implementation)

        return _value_and_gradients(convolve, x, 2 * offset, mask, weight)

    _assert_equal(call("interpret"), call("xla"))


def test_flow_guided_convolution_is_a_deformable_one_with_permuted_channels():
    groups, channels, magnitude = 4, 24, 4.0
    quad = quad_size(groups, 1, channels)
    x, published, flow, weight = _normal(
        2, (1, 4, 4, channels), (1, 4, 4, 27 * groups), (1, 4, 4, 1, 2), (3, 3, channels, 8)
    )
    offset = magnitude * jnp.tanh(published[..., : 18 * groups]).reshape(1, 4, 4, groups, 9, 2)
    offset += flow[..., None, ::-1]
    mask = jax.nn.sigmoid(published[..., 18 * groups :]).reshape(1, 4, 4, groups, 9)
    wanted = deform_conv2d(x, offset, mask, weight, implementation="xla")
    raw = published[..., raw_channels(groups, quad)]
    raw = raw.reshape(1, 4, 4, groups // quad, 9, 3, quad)
    out = flow_guided_deform_conv(x, raw, flow, weight, None, magnitude)
    np.testing.assert_allclose(out, wanted, atol=1e-4)


def test_the_warping_gradients_kernel_equals_the_reference():
    x, flow = _normal(3, (1, 8, 8, 16), (1, 8, 8, 2))
    flow = (3 * flow).at[0, 0, 0].set(jnp.array([1e20, -1e9]))

    def call(implementation):
        def warp(x, flow):
            return flow_warp(x, flow, implementation=implementation)

        return _value_and_gradients(warp, x, flow)

    wanted = call("xla")
    _assert_equal(call("interpret"), wanted)
    _assert_equal(call("auto"), wanted)
