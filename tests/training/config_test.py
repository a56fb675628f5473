import importlib

import pytest
from stand_in import register, tiny_config

from vrtspike_jax.training.config import changes, check_config, to_plain

CONFIGS = (
    "quickstart",
    "small",
    "finetune",
    "base",
    "baseline",
    "baseline_fast",
    "baseline_low_memory",
)


def load(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    return config.lock()


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_are_valid_and_survive_json(name):
    config = load(name)
    check_config(config)
    assert to_plain(config)["optim"]["name"] == config.optim.name


def test_baseline_is_the_originals():
    config = load("baseline")
    vrt, optim = config.model.vrt, config.optim
    assert (config.data.clip_length, config.data.crop_size, config.data.voxel.bins) == (5, 256, 32)
    assert len(vrt.depths) == 13 and set(vrt.embed_dims) == {96} and set(vrt.num_heads) == {6}
    assert tuple(vrt.window_size) == (5, 8, 8) and vrt.deformable_groups == 16
    assert config.model.tsa_heads == config.model.fuse_heads == 4
    assert (optim.learning_rate, optim.b1, optim.b2, optim.weight_decay) == (1e-4, 0.9, 0.99, 1e-4)
    assert (optim.warmup_steps, optim.accumulation_steps, optim.clip_norm) == (256, 6, 1.0)
    assert (config.loss.charbonnier_delta, config.loss.vgg_weight) == (1e-3, 0.1)
    assert tuple(config.loss.vgg_layers) == ("relu3_3",)
    assert config.eval_every_steps == 1000 and config.model.dtype == "bfloat16"


def test_variants_differ_from_the_baseline_as_they_say():
    base = to_plain(load("baseline"))
    fast = changes(base, to_plain(load("baseline_fast")))
    assert {line.split(":")[0] for line in fast} == {
        "data.batch_size",
        "model.remat",
        "optim.accumulation_steps",
    }
    light = to_plain(load("baseline_low_memory"))
    assert light["data"]["clip_length"] == 3 and light["data"]["crop_size"] == 128
    assert light["optim"]["name"] != "adamw" and light["model"]["remat"] != "none"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optim.learning_rate", -1.0, r"config\.optim\.learning_rate is -1\.0: expected a number"),
        ("optim.accumulation_steps", 0, "at least 1"),
        ("num_steps", 0, r"config\.num_steps is 0"),
        ("loss.vgg_layers", ("relu9",), "relu3_3"),
        ("eval.tile_size", 100, "multiple of 8"),
        ("optim.name", "adam", "'adafactor'"),
        ("model.dtype", "float8", "bfloat16"),
        ("model.name", "vrt_spikes", "'vrt_spike'"),
        ("data.voxel.bins", 16, "spike_bins is 4, but"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_wanted(field, value, message):
    register()
    config = tiny_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        check_config(config)


@pytest.mark.parametrize(
    ("section", "wrong", "right"),
    [
        ("optim", "learningrate", "learning_rate"),
        ("", "num_step", "num_steps"),
        ("model", "featurs", "features"),
        ("data", "crop", "crop_size"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest_known_one(section, wrong, right):
    register()
    config = tiny_config()
    with config.unlocked():
        (config[section] if section else config)[wrong] = 1
    with pytest.raises(ValueError, match=rf"{wrong}.*did you mean '{right}'"):
        check_config(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.crop_size", 100, r"config\.data\.crop_size is 100: expected .* multiple of 8"),
        ("data.crop_size", 56, r"config\.data\.crop_size is 56: expected .* at least the 64"),
        ("data.clip_length", 1, r"config\.data\.clip_length is 1: expected at least 2"),
        ("model.vrt.pa_frames", 6, None),  # needs 4 frames, and there are 5
        ("model.vrt.window_size", (5, 4, 4), None),
        ("model.vrt.window_size", (5, 40, 40), r"config\.data\.crop_size is 256: .* the 320"),
    ],
)
def test_clips_that_the_model_cannot_take_are_refused(field, value, message):
    config = load("baseline").unlock()
    config.update_from_flattened_dict({field: value})
    if message is None:
        check_config(config)
    else:
        with pytest.raises(ValueError, match=message):
            check_config(config)


def test_the_smallest_crop_follows_the_windows():
    config = load("baseline").unlock()
    config.update_from_flattened_dict({"model.vrt.window_size": (5, 4, 4), "eval.tile_size": 0})
    config.data.crop_size = 32
    check_config(config)
    config.data.crop_size = 24
    with pytest.raises(ValueError, match="at least the 32"):
        check_config(config)


def test_changes_are_listed_with_their_full_names():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert changes(old, new) == ["a.c: 2 -> 5", "d: 3 -> 'absent'", "e: 'absent' -> 4"]
