"""Fields by which the model departs from the published one: each does what it says, and no more."""

import gzip
import json
import math
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from small_models import BINS, CHANNELS, normal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs import baseline, small
from vrtspike_jax.convert.names import is_buffer
from vrtspike_jax.models.build import build_model
from vrtspike_jax.models.residual import ResidualGroup
from vrtspike_jax.models.spike import ConcatFuse
from vrtspike_jax.models.vrt import STAGES

KEYS = Path(__file__).parents[1] / "convert" / "published_keys.json.gz"
PUBLISHED = {"vrt", "spike_encoder", "spike_temporal_sa", "cross_attn_fuse"}


def shapes_of(model, bins=BINS, side=64):
    inputs = jnp.zeros((1, 2, side, side, 3)), jnp.zeros((1, 2, side // 2, side // 2, bins))
    inputs = inputs[: 1 + hasattr(model, "spike_bins")]
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def size(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def light(**fields):
    """A model of few operations, as convolutions compile fastest."""
    return small_models.with_spikes(small_models.backbone(conv_scales=3), **fields)


@pytest.fixture(scope="module")
def clip():
    """Frames and spikes of another resolution."""
    return 0.5 + 0.1 * normal(0, 1, 2, 32, 32, 3), jnp.abs(normal(1, 1, 2, 16, 16, BINS))


def test_the_baseline_has_as_many_parameters_as_published():
    model = build_model(baseline.get_config().model)
    shapes = json.loads(gzip.decompress(KEYS.read_bytes()))["vrtspike_baseline"]
    published = sum(math.prod(shape) for name, shape in shapes.items() if not is_buffer(name))
    assert size(shapes_of(model, bins=32)) == published


@pytest.mark.parametrize("name", ["vrt_spike", "vrt"])
def test_the_baselines_design_made_small_has_about_4_million_parameters(name):
    model = build_model(small.get_config(name).model)
    assert 2e6 < size(shapes_of(model, bins=small.BINS)) < 4.2e6


@pytest.mark.parametrize(
    ("fields", "without", "besides"),
    [
        ({}, set(), set()),
        ({"fusion": "concat"}, {"cross_attn_fuse"}, {"concat_fuse"}),
        ({"spike_attention": False}, {"spike_temporal_sa"}, set()),
        ({"spike_input": True}, set(), {"spike_first"}),
    ],
)
def test_a_field_changes_its_own_parameters_alone(fields, without, besides):
    wanted, found = (shapes_of(light(**f), side=32) for f in ({}, fields))
    assert found.keys() == PUBLISHED - without | besides
    common = found.keys() & wanted.keys()
    chex.assert_trees_all_equal_shapes(*({n: p[n] for n in common} for p in (wanted, found)))


@pytest.mark.parametrize("reach", [0, 2])
def test_alignment_adds_the_bins_that_it_warps_and_changes_nothing_else(reach):
    fields = {"spike_alignment": True, "alignment_reach": reach}
    wanted, found = (shapes_of(light(**f, spike_input=True)) for f in ({}, fields))
    assert found.keys() == wanted.keys() | {"spike_aligner"}
    for name in ("spike_first", "spike_encoder"):
        first = wanted[name] if name == "spike_first" else wanted[name]["in_proj"]
        second = found[name] if name == "spike_first" else found[name]["in_proj"]
        assert first["kernel"].shape[-2] == BINS
        assert second["kernel"].shape[-2] == 2 * (BINS + reach)
        first["kernel"] = second["kernel"]
    chex.assert_trees_all_equal_shapes(wanted, {n: found[n] for n in wanted})


def test_the_encoder_has_as_many_residual_blocks_as_asked():
    names = shapes_of(light(spike_blocks=1), side=32)["spike_encoder"].keys()
    assert names == {"in_proj", "res0_0"} | {f"downs_{i}" for i in range(3)} | {
        f"residuals_{i}_0" for i in range(3)
    }


@pytest.mark.parametrize("scales", [0, 1, 2, 3])
def test_convolutions_stand_for_attention_at_the_first_scales(scales):
    backbone = small_models.backbone(conv_scales=scales, optical_flow="none")
    shapes = shapes_of(backbone, side=32)
    for i, (scale, _) in enumerate(STAGES, 1):
        names = shapes[f"stage{i}"].keys()
        if scale < scales:
            assert names == {"reshape", "convolutions"}
        else:
            assert names >= {"residual_group1", "linear1", "warping"}
    assert ("blocks_0" in shapes["stage8_1"]) == (scales > 0)
    # The smallest clip is that of mutual attention at the lowest scale.
    assert backbone.smallest_clip() == (2, 32, 32)


@pytest.mark.parametrize("fusion", ["cross_attention", "concat"])
def test_spikes_reach_the_output_by_the_fusion_and_by_the_input(fusion, clip):
    model = light(fusion=fusion, spike_input=True, spike_attention=False)
    params = small_models.drawn_params(model, *clip, deviation=0.5)

    def loss(params, voxels):
        out = model.apply({"params": params}, clip[0], voxels)
        return jnp.sum(jnp.sin(3 * out)), out

    grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (weights, voxels), out = small_models.quickly(grad, params, clip[1])
    chex.assert_shape(out, clip[0].shape)
    chex.assert_tree_all_finite((weights, out))
    assert (np.abs(voxels).max(axis=-1) > 0).mean() > 0.99
    for name in ("spike_first", "spike_encoder"):
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(weights[name]))


def test_a_guide_is_added_to_the_first_features(clip):
    backbone = small_models.backbone(conv_scales=3, optical_flow="none")
    params = small_models.drawn_params(backbone, clip[0], deviation=0.5)

    def restore(params, guide):
        return backbone.apply({"params": params}, clip[0], guide=guide)

    shift = np.linspace(-0.5, 0.5, CHANNELS[0], dtype=np.float32)
    found = small_models.quickly(restore, params, jnp.zeros((1, 2, 32, 32, 1)) + shift)
    first = params["conv_first"]
    shifted = params | {"conv_first": first | {"bias": first["bias"] + shift}}
    nothing = jnp.zeros((1, 2, 32, 32, CHANNELS[0]))
    wanted = small_models.quickly(restore, shifted, nothing)
    assert np.abs(found - small_models.quickly(restore, params, nothing)).max() > 0.1
    # Weights this large make rounding grow, differently with each number of threads.
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_concatenation_mixes_neither_frames_nor_pixels():
    frames, spikes = normal(2, 1, 3, 4, 4, 8), normal(3, 1, 3, 4, 4, 8)
    fuse = ConcatFuse(scales=1)
    params = small_models.drawn_params(fuse, 0, frames, spikes)
    before = fuse.apply({"params": params}, 0, frames, spikes)
    after = fuse.apply({"params": params}, 0, frames, spikes.at[0, 1, 2, 3].multiply(-1.0))
    changed = np.abs(after - before).max(axis=-1) > 1e-4
    assert changed[0, 1, 2, 3] and changed.sum() == 1


def test_residual_convolutions_treat_frames_one_by_one():
    group = ResidualGroup(8, 2)
    x = normal(4, 1, 3, 8, 8, 8)
    params = small_models.drawn_params(group, x)
    before = group.apply({"params": params}, x)
    after = group.apply({"params": params}, x.at[0, 1, 4, 4].multiply(-1.0))
    changed = np.abs(after - before).max(axis=(0, 2, 3, 4)) > 1e-4
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "fusion",
            "add",
            r"config\.model\.fusion is 'add': expected one of 'cross_attention'",
        ),
        ("spike_attention", 1, r"config\.model\.spike_attention is 1: expected True or False"),
        ("spike_input", "yes", r"config\.model\.spike_input is 'yes': expected True or False"),
        ("spike_alignment", 1, r"config\.model\.spike_alignment is 1: expected True or False"),
        ("spike_blocks", 0, r"config\.model\.spike_blocks is 0: expected a whole number, 1 to"),
        ("alignment_reach", 33, r"config\.model\.alignment_reach is 33: expected 0 to 32"),
    ],
)
def test_values_that_a_field_cannot_have_are_named(field, value, message):
    config = baseline.get_config().model
    with config.ignore_type():
        config[field] = value
    with pytest.raises(ValueError, match=message):
        build_model(config)


def test_the_module_itself_refuses_an_unknown_fusion_and_too_many_convolved_scales():
    with pytest.raises(ValueError, match="fusion is 'add'"):
        shapes_of(light(fusion="add"), side=32)
    with pytest.raises(ValueError, match="conv_scales 4"):
        shapes_of(small_models.backbone(conv_scales=4), side=32)
