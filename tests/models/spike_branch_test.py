"""The spike branch: shapes at every scale, frames kept, chunks of pixels that change nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from small_models import CHANNELS, normal

from vrtspike_jax.models.spike import (
    SpikeEncoder3D,
    SpikeTemporalSA,
    SpikeTemporalSelfAttention,
    TemporalAttention,
    TemporalCrossAttnFuse,
)


def applied(module, *inputs, **options):
    params = small_models.drawn_params(module, *inputs)
    return module.apply({"params": params}, *inputs, **options)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (13, 18)])
def test_the_encoder_halves_space_and_keeps_every_frame(height, width):
    features = applied(SpikeEncoder3D(CHANNELS), jnp.ones((2, 5, height, width, 3)))
    assert len(features) == 4
    for channels, feature in zip(CHANNELS, features, strict=True):
        chex.assert_shape(feature, (2, 5, height, width, channels))
        height, width = -(-height // 2), -(-width // 2)


def test_the_encoder_shortens_time_only_where_its_strides_say_so():
    encoder = SpikeEncoder3D(CHANNELS, temporal_strides=(2, 1, 2))
    features = applied(encoder, jnp.ones((1, 8, 16, 16, 3)))
    assert [feature.shape[1] for feature in features] == [8, 4, 4, 2]
    with pytest.raises(ValueError, match="want 3 of each"):
        applied(SpikeEncoder3D(CHANNELS, spatial_strides=(2, 2)), jnp.ones((1, 2, 16, 16, 3)))


def test_temporal_attention_mixes_frames_but_never_pixels():
    x = normal(0, 1, 4, 6, 8)
    block = SpikeTemporalSelfAttention(heads=2)
    params = small_models.drawn_params(block, x)
    before = block.apply({"params": params}, x)
    chex.assert_shape(before, (1, 4, 6, 8))
    after = block.apply({"params": params}, x.at[0, 1, 2].multiply(-1.0))
    changed = np.abs(after - before).max(axis=(0, 3))
    assert (changed[:, 2] > 1e-4).all()
    assert (np.delete(changed, 2, axis=1) == 0).all()


def test_temporal_attention_is_scaled_dot_product_attention_of_each_head():
    query, memory = normal(1, 1, 3, 2, 8), normal(2, 1, 4, 2, 8)
    module = TemporalAttention(heads=2)
    params = small_models.drawn_params(module, query, memory, train=False)
    found = module.apply({"params": params}, query, memory, train=False)
    chex.assert_shape(found, (1, 3, 2, 8))
    kernel, bias = np.asarray(params["in_proj_weight"]), np.asarray(params["in_proj_bias"])
    q, k, v = (
        np.asarray(x) @ kernel[:, 8 * i : 8 * i + 8] + bias[8 * i : 8 * i + 8]
        for i, x in enumerate((query, memory, memory))
    )
    wanted = np.zeros((3, 2, 8))
    for pixel in range(2):
        for head in (slice(0, 4), slice(4, 8)):
            logits = q[0, :, pixel, head] @ k[0, :, pixel, head].T / 2
            weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            wanted[:, pixel, head] = weights @ v[0, :, pixel, head]
    out = params["out_proj"]
    wanted = wanted @ np.asarray(out["kernel"]) + np.asarray(out["bias"])
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)


FEATURES = [normal(3, 2, 3, 5, 6, 8), normal(4, 2, 3, 3, 3, 8)]


def attended_with_gradients(tokens):
    """Sum of squares of temporal attention's features, and its gradients."""
    module = SpikeTemporalSA(heads=2, max_batch_tokens=tokens)

    def loss(params, features):
        return sum(jnp.sum(y**2) for y in module.apply({"params": params}, features))

    params = small_models.drawn_params(SpikeTemporalSA(heads=2), FEATURES)
    return small_models.quickly(jax.value_and_grad(loss, argnums=(0, 1)), params, FEATURES)


@pytest.fixture(scope="module")
def attended_at_once():
    return attended_with_gradients(None)


# More than all pixels, a chunk that divides them, one that does not, fewer than the batch.
@pytest.mark.parametrize("tokens", [1000, 20, 34, 1])
def test_attention_in_chunks_of_pixels_equals_attention_at_once(tokens, attended_at_once):
    found = attended_with_gradients(tokens)
    chex.assert_trees_all_close(found, attended_at_once, rtol=1e-4, atol=1e-4)


def test_fusion_in_chunks_equals_fusion_at_once_and_resizes_spikes():
    frames, spikes = normal(5, 2, 3, 8, 6, 8), normal(6, 2, 3, 4, 3, 8)
    fuse = TemporalCrossAttnFuse(scales=1, heads=2)
    params = small_models.drawn_params(fuse, 0, frames, spikes)
    whole = fuse.apply({"params": params}, 0, frames, spikes)
    chex.assert_shape(whole, (2, 3, 8, 6, 8))
    chunked = TemporalCrossAttnFuse(scales=1, heads=2, max_batch_tokens=20)
    found = chunked.apply({"params": params}, 0, frames, spikes)
    np.testing.assert_allclose(found, whole, atol=1e-5)
