import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.data.batch import model_inputs, spike_crop_size
from vrtspike_jax.data.config import default_data_config
from vrtspike_jax.spikes import voxel_counts, voxelize


@pytest.mark.parametrize("log", [True, False])
def test_inputs_on_the_device_equal_voxelize_on_the_host(log):
    rng = np.random.default_rng(0)
    spikes = rng.integers(0, 2, (2, 20, 6, 8), dtype=np.uint8)
    frames = rng.integers(0, 256, (1, 2, 12, 16, 3), dtype=np.uint8)
    batch = {"blur": frames, "sharp": 255 - frames, "spikes": voxel_counts(spikes, 3)[None]}
    inputs = functools.partial(model_inputs, log=log, mean=0.3, std=1.7)
    blur, voxels, sharp = jax.jit(inputs)(batch)
    wanted = np.stack([voxelize(s, 3, log=log, mean=0.3, std=1.7) for s in spikes])
    np.testing.assert_allclose(voxels[0], wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(blur, frames / 255, rtol=1e-6)
    np.testing.assert_allclose(sharp, 1 - frames / 255, rtol=1e-5, atol=1e-6)
    assert {x.dtype for x in (blur, voxels, sharp)} == {jnp.dtype("float32")}


def test_a_deviation_of_zero_is_an_error():
    with pytest.raises(ValueError, match="found voxel std"):
        model_inputs({}, std=0.0)


def test_spike_crops_follow_the_scale():
    config = default_data_config()
    assert spike_crop_size(config, 256, 128) == (128, 64)
    config.spike_scale = (1.0, 0.25)
    assert spike_crop_size(config, 256, 128) == (256, 32)
