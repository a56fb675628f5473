"""Strict conversion of state dicts, exact both ways."""

import functools
import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from drawing import drawn

from vrtspike_jax.convert import from_torch, to_torch
from vrtspike_jax.convert.names import is_buffer
from vrtspike_jax.convert.weights import published_shapes
from vrtspike_jax.models import VRT, VRTWithSpike, published
from vrtspike_jax.models.published import TASKS
from vrtspike_jax.models.spynet import SpyNet

VRT_FIELDS = {
    "upscale": 1,
    "window_size": [3, 4, 4],
    # Both kinds of groups: pairs alone, an odd block alone, both, and none.
    "depths": [4, 2, 1, 2, 2, 1, 2, 3, 1],
    "indep_reconsts": [8],
    "embed_dims": [8, 16, 8, 16, 8, 16, 8, 16, 16],
    "num_heads": [2] * 9,
    "deformable_groups": 2,
    "mul_attn_ratio": 0.5,
}
SMALL = VRTWithSpike(
    vrt=VRT(**VRT_FIELDS), spike_bins=3, channels_per_scale=[8, 16, 8, 16], tsa_heads=2
)


@functools.cache
def published_keys():
    """Full-size state dicts' names and shapes, as the published code makes them."""
    packed = (Path(__file__).parent / "published_keys.json.gz").read_bytes()
    return json.loads(gzip.decompress(packed))


@pytest.fixture(scope="module")
def state():
    return drawn(published_shapes(SMALL))


@pytest.fixture(scope="module")
def params(state):
    return from_torch(state, SMALL)


def test_round_trip_is_exact_bit_for_bit(state, params):
    back = to_torch(params, SMALL)
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
        assert back[name].dtype == np.float32 and back[name].flags.c_contiguous


def test_parameters_differ_wherever_names_do(params, state):
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(
        array.size for array in state.values()
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"params": s},
        lambda s: {"params_ema": s, "params": {"conv_first.weight": np.zeros(1)}},
        lambda s: {"state_dict": s, "step": 3, "optimizer": {"state": {}}},
        lambda s: {"state_dict": {f"module.{name}": array for name, array in s.items()}},
        lambda s: {f"module._orig_mod.{name}": array for name, array in s.items()},
        lambda s: s | {"vrt.spynet.mean": np.zeros((1, 3, 1, 1))},
        lambda s: s | {"vrt.stage1.residual_group1.blocks.0.attn.position_bias": np.zeros(2)},
    ],
)
def test_wrappers_prefixes_and_buffers_are_seen_through(state, params, wrap):
    again = from_torch(wrap(state), SMALL)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_one_error_lists_all_that_does_not_fit(state):
    wrong = dict(state)
    del wrong["vrt.conv_last.bias"]
    del wrong["vrt.stage1.residual_group1.blocks.1.norm1.weight"]
    wrong["vrt.norm.weight"] = np.zeros(3)
    wrong["vrt.stage9.weight"] = np.zeros(3)
    with pytest.raises(ValueError) as error:
        from_torch(wrong, SMALL)
    for part in (
        "2 missing",
        "vrt.conv_last.bias",
        "vrt.stage1.residual_group1.blocks.1.norm1.weight",
        "1 unexpected: vrt.stage9.weight",
        "1 mis-shaped: vrt.norm.weight has (3,), want (16,)",
    ):
        assert part in str(error.value)


def test_long_lists_of_misfits_are_cut(state):
    with pytest.raises(ValueError, match=r"and \d+ more"):
        from_torch({"x": np.zeros(1)}, SMALL)


def test_entries_that_are_no_tensors_are_refused(state):
    with pytest.raises(ValueError, match="epoch is a int, want a tensor"):
        from_torch(state | {"epoch": 3}, SMALL)


def test_models_of_other_kinds_are_refused(state):
    from flax import linen as nn

    with pytest.raises(ValueError, match="Dense"):
        from_torch(state, nn.Dense(3))


def test_parameters_of_another_model_are_refused(params):
    with pytest.raises(ValueError, match="params do not fit"):
        to_torch(params["vrt"], SMALL)


@pytest.mark.parametrize("task", TASKS)
def test_published_tasks_have_the_published_fields(task):
    wanted = published_keys()["fields"][task]
    model = published(task)
    for name, value in wanted.items():
        found = getattr(model, name)
        assert found == (tuple(value) if isinstance(value, list) else value), name


def test_published_names_of_tasks_are_those_of_the_files():
    assert list(TASKS) == list(published_keys()["fields"])
    with pytest.raises(ValueError, match="known: 001_VRT_videosr_bi_REDS_6frames"):
        published("006_VRT_videodeblurring")
    assert published("006_VRT_videodeblurring_GoPro", remat="block").remat == "block"


# The others differ from these in what shapes show (groups, distances), and take as long.
QUICK_TASKS = ("006_VRT_videodeblurring_GoPro", "009_VRT_videofi_Vimeo_4frames")
TASK_MODELS = [
    pytest.param(task, marks=() if task in QUICK_TASKS else pytest.mark.slow) for task in TASKS
]


def assert_accepted(shapes, model):
    """The names and shapes are the model's own, and only buffers are left over."""
    wanted = {name: tuple(shape) for name, shape in shapes.items() if not is_buffer(name)}
    assert published_shapes(model) == wanted


@pytest.mark.parametrize("task", TASK_MODELS)
def test_full_size_state_dicts_of_published_tasks_are_accepted_strictly(task):
    assert_accepted(published_keys()[task], published(task))


def test_the_full_size_state_dict_of_the_baseline_with_spikes_is_accepted_strictly():
    vrt = VRT(upscale=1, window_size=(5, 8, 8), embed_dims=(96,) * 13)
    model = VRTWithSpike(vrt=vrt, spike_bins=32, channels_per_scale=(96,) * 4)
    shapes = published_keys()["vrtspike_baseline"]
    assert_accepted(shapes, model)


def test_buffers_are_written_as_the_published_modules_have_them():
    model = VRT(**VRT_FIELDS)
    state = drawn(published_shapes(model))
    written = to_torch(from_torch(state, model), model, buffers=True)
    buffers = {name: array for name, array in written.items() if is_buffer(name)}
    assert written.keys() - buffers.keys() == state.keys()
    blocks = [name for name in state if name.endswith("relative_position_bias_table")]
    mutual = [name for name in state if name.endswith("qkv_mut.weight")]
    # An index for each table, an encoding for each mutual attention, SpyNet's mean and deviation.
    assert len(buffers) == len(blocks) + len(mutual) + 2
    index = buffers["stage1.residual_group2.blocks.0.attn.relative_position_index"]
    # Row 0: token 0 (t, y, x) against each of 3 * 4 * 4 tokens; column (2, 3, 3) is the last.
    assert index.shape == (48, 48) and index.dtype == np.int64
    assert index[0, 0] == (2 * 7 + 3) * 7 + 3 and index[0, -1] == 0 and index[-1, 0] == 5 * 49 - 1
    assert buffers["spynet.mean"].shape == (1, 3, 1, 1)
    encoding = buffers["stage1.residual_group1.blocks.0.attn.position_bias"]
    assert encoding.shape == (1, 16, 8)
    # First channel: sin of the row's normalised angle; rows 1 to 4 of 4.
    rows = encoding[0].reshape(4, 4, 8)[:, 0, 0]
    np.testing.assert_allclose(rows, np.sin(np.arange(1, 5) / 4 * 2 * np.pi), atol=1e-5)


def test_spynet_converts_alone():
    state = drawn(published_shapes(SpyNet()))
    assert len(state) == 60
    params = from_torch({"params": state | {"mean": np.zeros((1, 3, 1, 1))}}, SpyNet())
    back = to_torch(params, SpyNet())
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
