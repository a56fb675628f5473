import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from safetensors.numpy import save_file

import vrtspike_jax
from vrtspike_jax import weights
from vrtspike_jax.data.config import check_data_config
from vrtspike_jax.models.build import build_model
from vrtspike_jax.training.checkpoints import load_for_inference
from vrtspike_jax.training.initialise import initial_state
from vrtspike_jax.training.sharding import make_mesh

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from configs import finetune

CONFIG = {
    "model": {
        "name": "unet_spike", "dtype": "bfloat16", "remat": "none", "kernels": "auto",
        "spike_bins": 4, "channels": [8, 8, 8, 8], "blocks": 1,
    },
    "data": {"clip_length": 3, "voxel": {"bins": 4, "log": True, "mean": 0.9, "std": 0.5}},
}  # fmt: skip


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "first": {"kernel": rng.normal(0, 0.1, (3, 3, 3, 8)), "bias": rng.normal(0, 0.1, 8)},
        "other": {"inner": {"scale": rng.normal(1, 0.1, 8)}},
    }


def test_what_is_saved_comes_back(tmp_path, params):
    path = tmp_path / "some.safetensors"
    weights.save_weights(path, params, ml_collections.ConfigDict(CONFIG), steps="7")
    model, found, config = weights.load_weights(path)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    np.testing.assert_allclose(found["first"]["kernel"], params["first"]["kernel"], rtol=1e-3)
    np.testing.assert_allclose(found["first"]["bias"], params["first"]["bias"], rtol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    assert type(model).__name__ == "UNetSpike" and model.channels == (8, 8, 8, 8)
    assert config.data.voxel.mean == 0.9
    assert weights.is_released(path)


def test_an_earlier_versions_config_gets_the_fields_that_came_later(tmp_path, params):
    path = tmp_path / "some.safetensors"
    weights.save_weights(path, params, ml_collections.ConfigDict(CONFIG))
    data = load_for_inference(path)[2].data
    assert data.voxel.steps == 0 and data.spike_scale == (0.5, 0.5)
    assert data.voxel.mean == 0.9 and data.clip_length == 3
    check_data_config(ml_collections.ConfigDict({**data.to_dict(), "root": "data"}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "damaged"),
        (b"no weights at all", "damaged"),
        ({}, "without a config"),
        ({"format": "vrtspike", "config": "{"}, "damaged"),
        ({"format": "vrtspike", "config": "{}"}, "damaged"),
        ({"format": "vrtspike"}, "damaged"),
        ({"format": "vrtspike", "config": '{"model": {"name": "nothing"}}'}, "config.model.name"),
    ],
)
def test_bad_weights_are_named(tmp_path, content, message):
    path = tmp_path / "bad.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file({"a": np.zeros(3, np.float32)}, path, content)
    with pytest.raises(ValueError, match=message):
        weights.load_weights(path)
    with pytest.raises(ValueError, match=message):
        vrtspike_jax.load(path)


def test_another_ending_is_refused(tmp_path, params):
    with pytest.raises(ValueError, match=r"\.safetensors"):
        weights.save_weights(tmp_path / "some.npz", params, ml_collections.ConfigDict(CONFIG))


def test_the_shipped_model_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert weights.find("small") == weights.SMALL
    assert vrtspike_jax.load("small").name == str(weights.SMALL)
    assert weights.find("smal") == Path("smal")
    (tmp_path / "small").mkdir()
    assert weights.find("small") == Path("small")  # a run that somebody called so


def test_training_goes_on_from_the_shipped_model():
    config = finetune.get_config()
    state = initial_state(build_model(config.model), config, make_mesh(config.mesh, None))
    wanted = weights.load_weights(weights.SMALL)[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), wanted)
    config.model.gated = False
    with pytest.raises(ValueError, match=r"small\.safetensors: parameter .* wanted"):
        initial_state(build_model(config.model), config, make_mesh(config.mesh, None))


def test_the_shipped_model_is_small():
    assert weights.SMALL.stat().st_size <= 10e6
    model, params, config = weights.load_weights(weights.SMALL)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) <= 4e6
    assert model.spike_bins == config.data.voxel.bins
