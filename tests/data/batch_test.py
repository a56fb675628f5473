import functools

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vrtspike_jax.data.batch import model_inputs, spike_crop_size
from vrtspike_jax.data.config import default_data_config
from vrtspike_jax.data.pipeline import train_iterator
from vrtspike_jax.data.prefetch import DevicePrefetch, to_devices
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


@pytest.fixture
def sharding():
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def test_prefetched_batches_are_the_batches_on_the_devices(plain_set, sharding):
    plain = train_iterator(plain_set.config(batch_size=2), seed=0)
    ahead = DevicePrefetch(train_iterator(plain_set.config(batch_size=2), 0), to_devices(sharding))
    for _ in range(5):
        wanted, found = next(plain), next(ahead)
        assert found["index"].dtype == jnp.int32
        for name in wanted:
            assert isinstance(found[name], jax.Array) and found[name].sharding == sharding
            np.testing.assert_array_equal(found[name], wanted[name])
    plain.close()
    ahead.close()


def test_the_state_is_that_of_the_batches_handed_out(plain_set, sharding):
    # Two more batches wait on the device, which must not count as seen.
    put = to_devices(sharding)
    ahead = DevicePrefetch(train_iterator(plain_set.config(), 0), put)
    for _ in range(3):
        next(ahead)
    state = ahead.get_state()
    assert state["next_clip"] == 3
    assert ahead.batches.get_state()["next_clip"] == 5
    rest = [next(ahead) for _ in range(3)]
    again = DevicePrefetch(train_iterator(plain_set.config(), 0), put)
    next(again)
    again.set_state(state)
    for batch in rest:
        np.testing.assert_array_equal(next(again)["blur"], batch["blur"])
    ahead.close()
    again.close()


def test_waiting_is_measured_around_the_hosts_iterator():
    clock = [0.0]

    class Slow(grain.DatasetIterator):
        def __next__(self):
            clock[0] += 0.5
            return {"x": np.zeros(1)}

        def get_state(self):
            return {}

        def set_state(self, state):
            pass

    def put(batch):
        clock[0] += 100.0
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vrtspike_jax.data.prefetch.time.perf_counter", lambda: clock[0])
        ahead = DevicePrefetch(Slow(), put, depth=2)
        next(ahead)
        assert ahead.wait_seconds == 1.5
        next(ahead)
        assert ahead.wait_seconds == 0.5
        assert ahead.total_wait_seconds == 2.0


def test_a_finite_iterator_hands_out_everything():
    batches = grain.MapDataset.range(5).map(lambda i: {"x": np.array([i])}).to_iter_dataset()
    ahead = DevicePrefetch(iter(batches), lambda batch: batch, depth=2)
    assert [int(batch["x"][0]) for batch in ahead] == list(range(5))
