"""Spikes along an estimated motion: positions, a start without motion, and what teaches it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import quickly

from vrtspike_jax.models.alignment import PIXELS, SpikeAlignment

BINS = 8
TIMES = (np.arange(BINS) + 0.5) / BINS - 0.5
SMALL = SpikeAlignment(channels=(8, 8, 8), blocks=1)


def shown(way, size=(24, 40)):
    """Pictures (..., H, W) of a smooth pattern that was moved by `way` (..., 2)."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    x, y = columns - way[..., 0, None, None], rows - way[..., 1, None, None]
    return np.sin(0.5 * x + 0.2 * y) + np.cos(0.4 * y - 0.1 * x)


def moving(velocity, acceleration=(0.0, 0.0), size=(24, 40)):
    """Voxels (1, 2, H, W, BINS) of the pattern on a parabola, and its middle."""
    way = TIMES[:, None] * np.array(velocity) + TIMES[:, None] ** 2 * np.array(acceleration)
    voxels = np.stack([np.moveaxis(shown(way, size), 0, -1)] * 2)[None]
    return jnp.asarray(voxels, jnp.float32), shown(np.zeros(2), size)


@pytest.fixture(scope="module")
def params():
    voxels, _ = moving((0, 0))
    return jax.jit(SMALL.init)(jax.random.key(0), voxels)["params"]


def test_it_starts_from_no_motion(params):
    voxels, _ = moving((5, 3))
    np.testing.assert_array_equal(SMALL.apply({"params": params}, voxels), voxels)


@pytest.mark.parametrize(
    ("velocity", "acceleration"), [((6, 0), (0, 0)), ((0, -4), (0, 0)), ((3, 2), (4, -6))]
)
def test_bins_on_the_right_way_all_show_the_middle(params, velocity, acceleration):
    voxels, middle = moving(velocity, acceleration)
    bias = jnp.array([*velocity, *acceleration], jnp.float32) / PIXELS
    told = params | {"head": params["head"] | {"bias": bias}}
    aligned = SMALL.apply({"params": told}, voxels)
    chex.assert_equal_shape([aligned, voxels])
    inside = np.s_[0, :, 5:-5, 5:-5]
    error = np.abs(aligned[inside] - middle[5:-5, 5:-5, None]).max()
    before = np.abs(voxels[inside] - middle[5:-5, 5:-5, None]).max()
    assert error < 0.1 < 0.5 < before


def test_bins_of_the_frames_before_and_after_show_the_middle_too():
    velocity = np.array([4.0, 2.0])
    way = (np.arange(3)[:, None, None] + TIMES[:, None]) * velocity
    voxels = jnp.asarray(np.moveaxis(shown(way), 1, -1)[None], jnp.float32)
    model = SMALL.clone(reach=3)
    params = jax.jit(model.init)(jax.random.key(0), voxels)["params"]
    still = model.apply({"params": params}, voxels)
    chex.assert_shape(still, (1, 3, 24, 40, BINS + 6))
    np.testing.assert_array_equal(still[:, 1, ..., :3], voxels[:, 0, ..., -3:])
    np.testing.assert_array_equal(still[:, 1, ..., -3:], voxels[:, 2, ..., :3])
    # At the ends, where there is no neighbour, its own bins stand in.
    np.testing.assert_array_equal(still[:, 0, ..., :3], voxels[:, 0, ..., 2::-1])
    np.testing.assert_array_equal(still[:, 2, ..., -3:], voxels[:, 2, ..., :-4:-1])

    bias = jnp.array([*velocity, 0, 0], jnp.float32) / PIXELS
    params = params | {"head": params["head"] | {"bias": bias}}
    aligned = model.apply({"params": params}, voxels)
    for t in range(3):
        middle = shown(t * velocity)[5:-5, 5:-5, None]
        assert np.abs(aligned[0, t, 5:-5, 5:-5] - middle).max() < 0.1


@pytest.mark.parametrize("reach", [-1, BINS + 1])
def test_it_reaches_no_farther_than_the_next_frame(reach):
    with pytest.raises(ValueError, match=rf"reach is {reach}, want 0 to {BINS}"):
        jax.eval_shape(SMALL.clone(reach=reach).init, jax.random.key(0), moving((0, 0))[0])


def test_the_difference_of_the_bins_average_teaches_it_the_motion(params):
    voxels, middle = moving((5, 3))
    optimizer = optax.adam(1e-2)

    def loss(params):
        average = SMALL.apply({"params": params}, voxels).mean(axis=-1)
        return jnp.mean((average - middle) ** 2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=60)[1]

    losses = train(params)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("size", [(16, 16), (18, 21)])
def test_any_size_will_do_and_spikes_get_no_gradient_by_the_warp(params, size):
    voxels, _ = moving((2, 1), size=size)
    model = SMALL.clone(dtype=jnp.bfloat16)
    out = quickly(lambda p, v: model.apply({"params": p}, v), params, voxels)
    chex.assert_shape(out, voxels.shape)
    assert out.dtype == voxels.dtype
    # At no motion the estimate passes none on, so that what were left is the warp's own.
    gradient = jax.grad(lambda v: SMALL.apply({"params": params}, v).sum())(voxels)
    assert not gradient.any()
