"""Settings of a model follow from the names and shapes of its weights."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from vrtspike_jax.convert import from_torch, to_torch
from vrtspike_jax.convert.infer import kind_of, model_fields
from vrtspike_jax.convert.names import is_buffer
from vrtspike_jax.convert.weights import published_shapes
from vrtspike_jax.models import VRT, UNetSpike, VRTWithSpike
from vrtspike_jax.models.published import TASKS

KEYS = json.loads(gzip.decompress((Path(__file__).parent / "published_keys.json.gz").read_bytes()))
# What names and shapes do not show.
HIDDEN = ("img_size",)


def of_shapes(shapes):
    """Arrays of the wanted shapes that take no memory, without buffers."""
    return {
        name: np.broadcast_to(np.float32(0), shape)
        for name, shape in shapes.items()
        if not is_buffer(name)
    }


@pytest.mark.parametrize("task", TASKS)
def test_settings_of_published_tasks_are_found(task):
    fields = model_fields(of_shapes(KEYS[task]))
    assert fields["name"] == "vrt"
    defaults = {name: getattr(VRT(), name) for name in TASKS[task]}
    found = defaults | fields["vrt"]
    assert {n: found[n] for n in TASKS[task] if n not in HIDDEN} == {
        n: value for n, value in TASKS[task].items() if n not in HIDDEN
    }
    if not TASKS[task]["pa_frames"]:
        assert found["img_size"][0] == TASKS[task]["img_size"][0]


def test_settings_of_the_baseline_with_spikes_are_found():
    fields = model_fields(of_shapes(KEYS["vrtspike_baseline"]))
    assert fields["name"] == "vrt_spike"
    assert fields["spike_bins"] == 32 and fields["channels_per_scale"] == (96,) * 4
    assert fields["tsa_mlp_ratio"] == fields["fuse_mlp_ratio"] == 2.0
    assert fields["vrt"]["window_size"] == (5, 8, 8) and fields["vrt"]["upscale"] == 1
    assert fields["vrt"]["depths"] == (8,) * 7 + (4,) * 6


UNUSUAL = {
    "upscale": 3,
    "window_size": (3, 4, 6),
    "depths": (5, 3, 4, 2, 4, 5, 6, 3, 1, 2),
    "indep_reconsts": (7, 9),
    "embed_dims": (24, 32, 40, 48, 40, 32, 24, 48, 48, 48),
    "num_heads": (4, 4, 2, 4, 4, 8, 2, 6, 6, 3),
    "mul_attn_ratio": 0.5,
    "mlp_ratio": 1.5,
    "qkv_bias": False,
    "pa_frames": 4,
    "deformable_groups": 8,
    "nonblind_denoising": True,
}


def test_unusual_settings_are_found_too():
    model = VRT(**UNUSUAL)
    shapes = published_shapes(model)
    params = from_torch(of_shapes(shapes), model)
    found = model_fields(to_torch(params, model, buffers=True))["vrt"]
    assert {name: found[name] for name in UNUSUAL} == UNUSUAL
    # Without buffers nothing tells a window of 4 x 6.
    with pytest.raises(ValueError, match="window"):
        model_fields(of_shapes(shapes))


@pytest.mark.parametrize(
    ("fields", "convolved"),
    [
        ({"fusion": "concat", "spike_attention": False, "spike_input": True}, 2),
        ({"spike_blocks": 1, "time_slope": 1.0, "spike_alignment": True}, 0),
        ({"spike_alignment": True, "alignment_reach": 2}, 0),
    ],
)
def test_settings_that_depart_from_the_published_model_are_found(fields, convolved):
    vrt = {
        "upscale": 1,
        "window_size": (3, 4, 4),
        "depths": (1, 2, 2, 3, 2, 2, 1, 2, 1),
        "indep_reconsts": (),
        "embed_dims": (8, 16, 24, 16, 24, 16, 8, 16, 16),
        # A group without attention has no heads; 1 stands for it.
        "num_heads": (1, 1, 2, 4, 2, 1, 1, 1, 1),
        "mul_attn_ratio": 0.5,
        "deformable_groups": 4,
        "optical_flow": "none",
        "conv_scales": convolved,
    }
    model = VRTWithSpike(VRT(**vrt), 3, vrt["embed_dims"][:4], tsa_heads=2, fuse_heads=2, **fields)
    shapes = published_shapes(model)
    params = from_torch(of_shapes(shapes), model)
    found = model_fields(to_torch(params, model, buffers=True))
    assert {name: found["vrt"][name] for name in vrt} == vrt
    defaults = {name: getattr(VRTWithSpike(VRT()), name) for name in fields}
    assert {name: found.get(name, defaults[name]) for name in fields} == fields


def test_a_network_without_published_counterpart_is_named():
    with pytest.raises(ValueError, match="UNetSpike, which has no published counterpart"):
        published_shapes(UNetSpike())


def test_other_weights_are_named():
    assert kind_of(of_shapes({"features.0.weight": [64, 3, 3, 3]})) == "vgg16"
    with pytest.raises(ValueError, match="layer1"):
        kind_of({"layer1.weight": np.zeros(1)})
    incomplete = of_shapes(KEYS["006_VRT_videodeblurring_GoPro"])
    del incomplete["conv_last.weight"]
    with pytest.raises(ValueError, match=r"without conv_last\.weight"):
        model_fields(incomplete)
    broken = of_shapes(KEYS["006_VRT_videodeblurring_GoPro"])
    broken["stage3.residual_group1.blocks.0.mlp.fc11.weight"] = np.zeros((100, 96))
    with pytest.raises(ValueError, match="mlp_ratio"):
        model_fields(broken)
