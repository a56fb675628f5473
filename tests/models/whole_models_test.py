"""VRTWithSpike as a whole: shapes, names of intermediates, 16-bit compute, and refusals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from small_models import BINS, CHANNELS, normal


@pytest.fixture(scope="module")
def clip():
    """Frames and spikes of another resolution."""
    frames = 0.5 + 0.1 * normal(0, 2, 3, 40, 32, 3)
    return frames, jnp.abs(normal(1, 2, 3, 18, 16, BINS))


@pytest.fixture(scope="module")
def params(clip):
    # Weights as large as those of a trained model, whose output differs from its input by a
    # few tenths; larger ones make a chaotic network.
    model = small_models.with_spikes(small_models.backbone())
    return small_models.drawn_params(model, *clip, deviation=0.5)


def run(params, clip, **fields):
    model = small_models.with_spikes(small_models.backbone(**fields))

    def restore(params, *clip):
        return model.apply({"params": params}, *clip, return_intermediates=True)

    return small_models.quickly(restore, params, *clip)


@pytest.fixture(scope="module")
def restored(params, clip):
    return run(params, clip)


def test_frames_keep_their_shape(restored, clip):
    out, _ = restored
    chex.assert_shape(out, clip[0].shape)
    chex.assert_tree_all_finite(out)
    assert np.abs(out - clip[0]).mean() > 0.05  # The network takes part.


def test_intermediates_have_documented_names_and_shapes(restored):
    seen = dict(restored[1])
    sizes = [(40 // 2**i, 32 // 2**i) for i in range(4)]
    wanted = {}
    for i, (size, channels) in enumerate(zip(sizes, CHANNELS, strict=True), 1):
        wanted |= {f"{name}{i}": (2, 3, *size, channels) for name in ("stage", "fused")}
        spikes = -(-18 // 2 ** (i - 1)), 16 // 2 ** (i - 1)
        for name in ("spike_features", "spike_temporal"):
            wanted[f"{name}{i}"] = (2, 3, *spikes, channels)
    wanted |= {f"stage{i}": (2, 3, *sizes[7 - i], CHANNELS[7 - i]) for i in (5, 6, 7)}
    for way in ("flows_backward", "flows_forward"):
        (flows,) = seen.pop(way)
        for flow, size in zip(flows, sizes, strict=True):
            chex.assert_shape(flow, (2, 2, *size, 2))
    assert {name: feature.shape for name, feature in seen.items()} == wanted


def test_bfloat16_compute_is_within_one_percent_of_float32(params, clip, restored):
    wanted, seen = restored
    found, rough = run(params, clip, dtype=jnp.bfloat16)
    assert found.dtype == jnp.float32 and rough["stage1"].dtype == jnp.bfloat16
    # Flow is float32 whatever the compute dtype.
    for way in ("flows_backward", "flows_forward"):
        chex.assert_trees_all_close(rough[way], seen[way], atol=1e-6)
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 1e-2


@pytest.mark.parametrize(
    ("frames", "voxels", "message"),
    [
        ((1, 2, 36, 32, 3), (1, 2, 16, 16, BINS), "multiples of 8"),
        ((1, 2, 32, 24, 3), (1, 2, 16, 16, BINS), "at least 32 x 32"),
        ((1, 1, 32, 32, 3), (1, 1, 16, 16, BINS), "at least 2 frames"),
        ((1, 2, 32, 32, 4), (1, 2, 16, 16, BINS), r"want \(B, T, H, W, 3\)"),
        ((1, 2, 32, 32, 3), (1, 3, 16, 16, BINS), r"want \(1, 2, H, W, 3\)"),
        ((1, 2, 32, 32, 3), (1, 2, 16, 16, BINS + 1), r"want \(1, 2, H, W, 3\)"),
    ],
)
def test_clips_that_do_not_fit_are_named(frames, voxels, message):
    model = small_models.with_spikes(small_models.backbone())
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (frames, voxels)]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), *shapes)
