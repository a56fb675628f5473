"""Train step and inference lower for TPUs, on a machine that has none."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import export

from vrtspike_jax.cli.configs import load_config
from vrtspike_jax.models.build import build_model
from vrtspike_jax.training import optimizer
from vrtspike_jax.training.state import create_state
from vrtspike_jax.training.step import Recipe, apply_model, train_step

BASELINE = Path(__file__).parents[1] / "configs/baseline.py"


def _config(small):
    config = load_config(str(BASELINE))
    config.loss.vgg_weight = 0.0  # its weights come from a file
    if small:
        config.model.vrt.depths = (2,) * 8
        config.model.vrt.embed_dims = (32,) * 8
        config.model.vrt.num_heads = (2,) * 8
        config.model.vrt.indep_reconsts = ()
        config.model.vrt.mul_attn_ratio = 0.5
        config.model.channels_per_scale = (32,) * 4
        config.data.clip_length, config.data.crop_size = 3, 64
    return config


def _shapes(config):
    """A batch of one clip, the model and the shapes of its parameters."""
    frames, size, bins = config.data.clip_length, config.data.crop_size, config.data.voxel.bins
    clip = jax.ShapeDtypeStruct((1, frames, size, size, 3), jnp.uint8)
    spikes = jax.ShapeDtypeStruct((1, frames, size // 2, size // 2, bins), jnp.uint8)
    batch = {"blur": clip, "sharp": clip, "spikes": spikes}
    batch["index"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    model = build_model(config.model)
    inputs = (jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (clip, spikes))
    return batch, model, jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def _lower(function, *args):
    """The module lowered for TPUs."""
    exported = export.export(jax.jit(function), platforms=["tpu"])(*args)
    assert exported.platforms == ("tpu",)
    return exported


@pytest.mark.parametrize(
    "small", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["small", "baseline"]
)
@pytest.mark.parametrize("kernels", ["auto", "pallas"])
def test_train_step_and_inference_lower_for_tpus_without_gpu_kernels(small, kernels):
    config = _config(small)
    config.model.kernels = kernels
    batch, model, params = _shapes(config)
    tx = optimizer.gradient_transformation(config.optim)
    state = jax.eval_shape(lambda p: create_state(p, tx, config.optim), params)
    step = functools.partial(train_step, model=model, tx=tx, recipe=Recipe.from_config(config))
    stacked = {k: jax.ShapeDtypeStruct((1, *a.shape), a.dtype) for k, a in batch.items()}
    trained = _lower(step, state, stacked, {})
    floats = [jax.ShapeDtypeStruct(batch[k].shape, jnp.float32) for k in ("blur", "spikes")]
    restored = _lower(functools.partial(apply_model, model), params, *floats)
    assert restored.out_avals[0].shape == batch["blur"].shape
    assert len(trained.out_avals) > len(jax.tree.leaves(state))
    for exported in (trained, restored):
        assert "triton" not in exported.mlir_module()
        # Parameters and activations, not constants of the size of a feature map.
        assert len(exported.mlir_module_serialized) < (16 << 20)
