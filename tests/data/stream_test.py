"""The training stream: complete, the same however it is read, and honest about bad clips."""

import asyncio
import json
import os

import grain
import numpy as np
import pytest
from example_sets import STEPS, frame_spikes
from orbax.checkpoint import v1 as ocp

from vrtspike_jax.data.errors import TooManyBadClips
from vrtspike_jax.data.iterator import TrainIterator
from vrtspike_jax.data.pipeline import train_iterator
from vrtspike_jax.spikes import trained_counts, voxel_counts

CLIPS = 5  # 3 + 2 clips of 3 frames in sequences of 5 and 4


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def joined(batches):
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def test_a_batch_has_the_agreed_names_types_and_shapes(plain_set):
    (batch,) = take(train_iterator(plain_set.config(batch_size=2), seed=0), 1)
    found = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    assert found == {
        "blur": ("uint8", (2, 3, 16, 16, 3)),
        "sharp": ("uint8", (2, 3, 16, 16, 3)),
        "spikes": ("uint8", (2, 3, 8, 8, 4)),
        "index": ("int64", (2,)),
    }


def test_spikes_of_another_camera_are_those_of_the_models(plain_set):
    config = plain_set.config(flip=False, rotate=False, reverse_time=False, crop_size=0)
    config.voxel.steps = 4  # half as fast as the one that wrote the files
    iterator = train_iterator(config, seed=0)
    batch = next(iterator)
    sequence, first = iterator.source.name(int(batch["index"][0])).split("/")
    iterator.close()
    raw = np.stack([frame_spikes(int(sequence[3]), int(first) + t) for t in range(3)])
    np.testing.assert_array_equal(batch["spikes"][0], trained_counts(raw, 4, 4))
    assert batch["spikes"].max() == 1 < voxel_counts(raw, 4).max()


def test_batches_hold_what_the_files_hold(plain_set):
    config = plain_set.config(flip=False, rotate=False, reverse_time=False)
    iterator = train_iterator(config, seed=0)
    for _ in range(12):
        batch = next(iterator)
        name = iterator.source.name(int(batch["index"][0]))
        sequence, first = int(name[3]), int(name.split("/")[1])
        for t in range(3):
            blur, sharp = batch["blur"][0, t].astype(int), batch["sharp"][0, t]
            top, left = blur[0, 0, :2]
            assert (blur[..., 0] == top + np.arange(16)[:, None]).all()
            assert (blur[..., 1] == left + np.arange(16)).all()
            assert (blur[..., 2] == 100 * sequence + first + t).all()
            assert (sharp[..., 2] == 100 * sequence + 10 + first + t).all()
            spikes = frame_spikes(sequence, first + t)
            window = spikes[:, top // 2 : top // 2 + 8, left // 2 : left // 2 + 8]
            np.testing.assert_array_equal(batch["spikes"][0, t], voxel_counts(window, 4))
    iterator.close()


def test_every_clip_comes_once_before_any_comes_again(plain_set):
    indices = joined(take(train_iterator(plain_set.config(), seed=0), 4 * CLIPS))["index"]
    epochs = indices.reshape(4, CLIPS)
    assert (np.sort(epochs, axis=1) == np.arange(CLIPS)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_crops_are_drawn_anew_each_time(plain_set):
    config = plain_set.config(flip=False, rotate=False, reverse_time=False)
    batches = take(train_iterator(config, seed=0), 6 * CLIPS)
    corners = {tuple(b["blur"][0, 0, 0, 0, :2]) for b in batches if b["index"][0] == 0}
    assert len(corners) > 2


def test_seeds_give_different_streams(plain_set):
    a = take(train_iterator(plain_set.config(), seed=0), 8)
    b = take(train_iterator(plain_set.config(), seed=1), 8)
    assert not np.array_equal(joined(a)["blur"], joined(b)["blur"])
    assert_same(a, take(train_iterator(plain_set.config(), seed=0), 8))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_restored_position_gives_the_rest_of_the_stream(plain_set, batch_size):
    config = plain_set.config(batch_size=batch_size)
    whole = take(train_iterator(config, seed=3), 11)
    iterator = train_iterator(config, seed=3)
    for _ in range(4):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    iterator.close()
    again = train_iterator(config, seed=3)
    again.set_state(state)
    assert again.get_state() == state
    assert_same(take(again, 7), whole[4:])


def test_a_position_can_be_gone_back_to_after_reading_on(plain_set):
    iterator = train_iterator(plain_set.config(), seed=3)
    next(iterator)
    state = iterator.get_state()
    first = [next(iterator) for _ in range(3)]
    iterator.set_state(state)
    assert_same(take(iterator, 3), first)


def test_orbax_saves_and_restores_the_position(plain_set, tmp_path):
    iterator = train_iterator(plain_set.config(), seed=3)
    for _ in range(3):
        next(iterator)
    with ocp.training.Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save_checkpointables(3, {"data": iterator})
        rest = take(iterator, 4)
        again = train_iterator(plain_set.config(), seed=3)
        checkpointer.load_checkpointables(3, {"data": again})
        assert_same(take(again, 4), rest)


def test_the_position_carries_over_to_another_batch_size(plain_set):
    iterator = train_iterator(plain_set.config(batch_size=2), seed=3)
    next(iterator)
    state = iterator.get_state()
    rest = joined(take(iterator, 6))
    again = train_iterator(plain_set.config(batch_size=4), seed=3)
    again.set_state(state)
    assert_same([joined(take(again, 3))], [rest])


def test_hosts_share_one_stream_in_order(plain_set):
    # Batch n of all hosts together is batch n of a single one, so that training is the same.
    whole = take(train_iterator(plain_set.config(batch_size=4), seed=3), 6)
    for count in (2, 4):
        config = plain_set.config(batch_size=4)
        shards = [take(train_iterator(config, 3, i, count), 6) for i in range(count)]
        for n in range(6):
            parts = [shard[n] for shard in shards]
            assert all(len(part["index"]) == 4 // count for part in parts)
            assert_same([joined(parts)], [whole[n]])


def test_the_position_carries_over_to_another_number_of_hosts(plain_set):
    config = plain_set.config(batch_size=4)
    whole = take(train_iterator(config, seed=3), 6)
    hosts = [train_iterator(config, 3, i, 2) for i in range(2)]
    for host in hosts:
        for _ in range(2):
            next(host)
    states = [host.get_state() for host in hosts]
    assert states[0] == states[1]
    alone = train_iterator(config, seed=3)
    alone.set_state(states[1])
    assert_same(take(alone, 4), whole[2:])
    for host in hosts:
        host.close()


def test_a_batch_that_hosts_cannot_share_is_an_error(plain_set):
    with pytest.raises(ValueError, match=r"batch_size=3.*divides"):
        train_iterator(plain_set.config(batch_size=3), 0, 0, 2)


def test_worker_processes_give_the_same_stream_and_resume(plain_set):
    config = plain_set.config(batch_size=2)
    whole = take(train_iterator(config, seed=3), 9)
    config.num_workers = 2
    iterator = train_iterator(config, seed=3)
    first = [next(iterator) for _ in range(4)]
    state = iterator.get_state()
    iterator.close()
    assert_same(first, whole[:4])
    # The number of workers may change from one run to the next.
    config.num_workers = 1
    again = train_iterator(config, seed=3)
    again.set_state(state)
    assert_same(take(again, 5), whole[4:])


def test_a_position_of_another_data_set_is_refused(plain_set):
    state = train_iterator(plain_set.config(), seed=3).get_state()
    plain_set.add(sequence=8)
    with pytest.raises(ValueError, match="found num_clips=5, wanted 8"):
        train_iterator(plain_set.config(), seed=3).set_state(state)
    with pytest.raises(ValueError, match="found seed=3, wanted 4"):
        train_iterator(plain_set.config(), seed=4).set_state(state | {"num_clips": 8})


# Bad clips. Damage is done after verification, as when a disk fails in the middle of a run.


def damaged_iterator(plain_set, max_bad_clips, seed=0, **fields):
    """Sequence 1 (clips 3 and 4 of 5) has lost its second spike file: both clips are bad."""
    iterator = train_iterator(plain_set.config(max_bad_clips=max_bad_clips, **fields), seed)
    os.rename(
        plain_set.root / "train/seq1/spike/00000001.dat",
        plain_set.root / "train/seq1/spike/00000001.gone",
    )
    return iterator


def test_bad_clips_are_replaced_counted_and_named(plain_set, caplog):
    iterator = damaged_iterator(plain_set, max_bad_clips=2)
    indices = [int(next(iterator)["index"][0]) for _ in range(2 * CLIPS)]
    assert set(indices) == {0, 1, 2}
    assert iterator.bad_clips == {3: "seq1/00000000", 4: "seq1/00000001"}
    assert iterator.replaced >= 4
    assert "seq1/00000000" in caplog.text and "00000001.dat: no such spike file" in caplog.text
    iterator.close()


def test_more_bad_clips_than_allowed_stop_the_run(plain_set):
    iterator = damaged_iterator(plain_set, max_bad_clips=1)
    with pytest.raises(TooManyBadClips, match=r"2 clips .*max_bad_clips=1.*00000001\.dat"):
        for _ in range(3 * CLIPS):
            next(iterator)
    iterator.close()


def test_the_stream_with_replacements_resumes_exactly(plain_set):
    iterator = damaged_iterator(plain_set, max_bad_clips=5)
    first = [next(iterator) for _ in range(4)]
    state = json.loads(json.dumps(iterator.get_state()))
    rest = take(iterator, 8)
    (plain_set.root / "train/seq1/spike/00000001.gone").rename(
        plain_set.root / "train/seq1/spike/00000001.dat"
    )
    again = damaged_iterator(plain_set, max_bad_clips=5)
    again.set_state(state)
    assert again.bad_clips and again.replaced == state["replaced"]
    assert_same(take(again, 8), rest)
    assert 3 not in joined(first + rest)["index"]


def test_bad_clips_seen_before_a_restart_still_count(plain_set):
    iterator = damaged_iterator(plain_set, max_bad_clips=1)
    state = iterator.get_state() | {"bad_clips": [0]}
    iterator.set_state(state)
    with pytest.raises(TooManyBadClips):
        for _ in range(2 * CLIPS):
            next(iterator)
    iterator.close()


def test_bad_clips_of_all_hosts_count_after_a_restart(plain_set, tmp_path):
    iterator = train_iterator(plain_set.config(), seed=0)
    for process, bad in enumerate(([0, 3], [3, 4])):
        state = iterator.get_state() | {"next_clip": 6, "bad_clips": bad, "replaced": 2}
        (tmp_path / f"process_{process}-of-2.json").write_text(json.dumps(state))

    async def load():
        await (await iterator.load(tmp_path))

    asyncio.run(load())
    assert iterator.get_state()["next_clip"] == 6
    assert sorted(iterator.bad_clips) == [0, 3, 4] and iterator.replaced == 4


WHOLE = {"seed": 0, "num_clips": 5, "replaced": 0, "bad_clips": [], "next_clip": 3}
BROKEN = [WHOLE | {"next_clip": -1}, WHOLE | {"next_clip": "x"}, WHOLE | {"bad_clips": [5]}]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", json.dumps(WHOLE)[:60], *(json.dumps(state) for state in BROKEN)]
)
def test_a_damaged_position_is_a_value_error(plain_set, tmp_path, text):
    (tmp_path / "process_0-of-1.json").write_text(text)
    iterator = train_iterator(plain_set.config(), seed=0)

    async def load():
        await (await iterator.load(tmp_path))

    with pytest.raises(ValueError, match=r"position"):
        asyncio.run(load())


def test_a_data_set_that_vanished_stops_the_run(plain_set):
    iterator = train_iterator(plain_set.config(max_bad_clips=100), seed=0)
    plain_set.root.rename(plain_set.root.with_name("gone"))
    with pytest.raises(ValueError, match="9 clips in a row could not be read"):
        next(iterator)
    iterator.close()


def test_faults_of_the_program_are_not_taken_for_bad_clips(plain_set):
    class Faulty:
        def __len__(self):
            return 5

    def load(i, rng):
        raise ValueError("a fault of the program")

    clips = grain.MapDataset.range(5).seed(0).repeat().random_map(load)
    iterator = TrainIterator(clips, Faulty(), seed=0, batch_size=1, max_bad_clips=9)
    with pytest.raises(ValueError, match="a fault of the program"):
        next(iterator)
    iterator.close()


def test_a_closed_iterator_says_so(plain_set):
    iterator = train_iterator(plain_set.config(), seed=0)
    next(iterator)
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_scenes_are_a_source_like_any_other(plain_set):
    config = plain_set.config(source="scenes", root="", clip_length=2, steps=STEPS)
    config.scenes.height = config.scenes.width = 32
    config.scenes.train_clips = 3
    iterator = train_iterator(config, seed=0)
    whole = [next(iterator) for _ in range(2)]
    state = iterator.get_state()
    whole += take(iterator, 2)
    assert whole[0]["blur"].shape == (1, 2, 16, 16, 3)
    assert whole[0]["spikes"].shape == (1, 2, 8, 8, 4)
    again = train_iterator(config, seed=0)
    again.set_state(state)
    assert_same(take(again, 2), whole[2:])
