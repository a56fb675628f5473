"""The U-Net: shapes, frames one by one, spikes that reach the output, and refusals."""

import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from small_models import normal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs import small
from vrtspike_jax.models import UNetSpike
from vrtspike_jax.models.build import build_model

BINS = 4


def unet(**fields):
    return UNetSpike(**{"spike_bins": BINS, "channels": (4, 6, 8, 10)} | fields)


@pytest.fixture(scope="module")
def clip():
    """Frames and spikes of another resolution."""
    return 0.5 + 0.1 * normal(0, 2, 3, 24, 16, 3), jnp.abs(normal(1, 2, 3, 12, 8, BINS))


@pytest.fixture(scope="module")
def params(clip):
    return small_models.drawn_params(unet(), *clip)


@pytest.fixture(scope="module")
def restore(params):
    return jax.jit(lambda *clip: unet().apply({"params": params}, *clip))


def test_frames_keep_their_shape(restore, clip):
    out = restore(*clip)
    chex.assert_shape(out, clip[0].shape)
    chex.assert_tree_all_finite(out)
    assert out.dtype == jnp.float32
    assert np.abs(out - clip[0]).mean() > 0.05  # The network takes part.


def test_frames_are_restored_one_by_one(restore, clip):
    frames, voxels = clip
    before = restore(frames, voxels)
    for changed in ((frames.at[0, 1].add(0.1), voxels), (frames, voxels.at[0, 1].add(1.0))):
        difference = np.abs(restore(*changed) - before).max(axis=(2, 3, 4))
        assert difference[0, 1] > 1e-3
        assert (np.delete(difference.ravel(), 1) == 0).all()


def test_spikes_reach_every_pixel(params, clip):
    def loss(voxels):
        return jnp.sum(jnp.sin(unet().apply({"params": params}, clip[0], voxels)))

    gradient = small_models.quickly(jax.grad(loss), clip[1])
    assert (np.abs(gradient).max(axis=-1) > 0).all()


def test_an_untrained_network_returns_its_input(clip):
    model = unet()
    params = jax.jit(model.init)(jax.random.key(0, impl="rbg"), *clip)["params"]
    np.testing.assert_array_equal(model.apply({"params": params}, *clip), clip[0])


def test_bfloat16_and_recomputation_are_near_the_plain_network(params, clip, restore):
    model = unet(dtype=jnp.bfloat16, remat="block")
    found = jax.jit(model.apply)({"params": params}, *clip)
    wanted = restore(*clip)
    assert found.dtype == jnp.float32
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 5e-2


def test_the_shipped_config_has_about_4_9_million_parameters():
    model = build_model(small.get_config("unet_spike").model)
    inputs = jnp.zeros((1, 1, 8, 8, 3)), jnp.zeros((1, 1, 4, 4, small.BINS))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 4.8e6 < count < 5.0e6


@pytest.mark.parametrize(
    ("fields", "frames", "voxels", "message"),
    [
        ({}, (1, 2, 20, 16, 3), (1, 2, 8, 8, BINS), "multiples of 8"),
        ({}, (1, 2, 16, 16, 4), (1, 2, 8, 8, BINS), r"want \(B, T, H, W, 3\)"),
        ({}, (1, 2, 16, 16, 3), (1, 3, 8, 8, BINS), r"want \(1, 2, H, W, 4\)"),
        ({}, (1, 2, 16, 16, 3), (1, 2, 8, 8, BINS + 1), r"want \(1, 2, H, W, 4\)"),
        ({"remat": "attn"}, (1, 2, 16, 16, 3), (1, 2, 8, 8, BINS), "remat is 'attn'"),
        ({"kernels": "fast"}, (1, 2, 16, 16, 3), (1, 2, 8, 8, BINS), "implementation 'fast'"),
    ],
)
def test_what_does_not_fit_is_named(fields, frames, voxels, message):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (frames, voxels)]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(unet(**fields).init, jax.random.key(0), *shapes)
