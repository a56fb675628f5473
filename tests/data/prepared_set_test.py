import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from vrtspike_jax.data import prepare as prepare_module
from vrtspike_jax.data.pipeline import eval_clips, train_iterator
from vrtspike_jax.data.prepare import PrepareOptions, prepare

# Tiles that do not divide the frame, so that crops meet whole, cut and border tiles.
SMALL_TILES = PrepareOptions(tile=20, threads=2)


def assert_same_stream(first, second, count):
    for _ in range(count):
        a, b = next(first), next(second)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("variant", ["tiled", "whole"])
def test_a_built_set_gives_the_stream_of_the_files(gopro, tmp_path, variant):
    from vrtspike_jax_datasets.gopro_spike import GoproSpike

    builder = GoproSpike(config=variant, data_dir=tmp_path / "out")
    download = tfds.download.DownloadConfig(manual_dir=gopro.root)
    builder.download_and_prepare(download_config=download)
    files = train_iterator(gopro.config(layout="gopro"), seed=3)
    prepared = train_iterator(gopro.config(source="tfds", root=str(builder.data_dir)), seed=3)
    assert_same_stream(files, prepared, 7)


def test_a_prepared_set_gives_the_stream_of_the_files(plain_set, tmp_path):
    report = prepare("svrt", plain_set.root, tmp_path / "out", SMALL_TILES)
    assert report.frames == {"train": 9, "test": 5}
    assert report.sequences == {"train": 2, "test": 1}
    assert not report.skipped
    config = plain_set.config(source="tfds", root=str(report.folder))
    assert_same_stream(train_iterator(plain_set.config(), 3), train_iterator(config, 3), 7)
    for a, b in zip(eval_clips(plain_set.config()), eval_clips(config), strict=True):
        assert a[0] == b[0]
        for name in a[1]:
            np.testing.assert_array_equal(a[1][name], b[1][name])


@pytest.mark.parametrize("kind", ["gopro", "x4k"])
def test_published_sets_are_built_and_prepared_alike(gopro, x4k, tmp_path, kind):
    from vrtspike_jax_datasets.gopro_spike import GoproSpike
    from vrtspike_jax_datasets.x4k_spike import X4kSpike

    published, cls = {"gopro": (gopro, GoproSpike), "x4k": (x4k, X4kSpike)}[kind]
    fields = {"steps": 33, "splits": ("train", "val")} if kind == "x4k" else {}
    builder = cls(data_dir=tmp_path / "built")
    download = tfds.download.DownloadConfig(manual_dir=published.root)
    builder.download_and_prepare(download_config=download)
    report = prepare(kind, published.root, tmp_path / "prepared", PrepareOptions(**fields))
    # TFDS finds the prepared set under the name of the builder's variant.
    assert report.folder.relative_to(tmp_path / "prepared") == pathlib.Path(
        builder.data_dir
    ).relative_to(tmp_path / "built")
    other = cls(data_dir=tmp_path / "prepared")
    for split in builder.info.splits:
        built, prepared = (b.as_data_source(split=split) for b in (builder, other))
        assert len(built) == len(prepared) > 0
        for a, b in zip(built, prepared, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])


def test_reading_and_building_need_no_tensorflow(gopro, tmp_path):
    # In a process of its own, as other tests may have loaded it.
    program = """
import sys
import tensorflow_datasets as tfds
from vrtspike_jax_datasets.gopro_spike import GoproSpike
from vrtspike_jax.data.config import default_data_config
from vrtspike_jax.data.pipeline import train_iterator
builder = GoproSpike(data_dir=sys.argv[2])
download = tfds.download.DownloadConfig(manual_dir=sys.argv[1])
builder.download_and_prepare(download_config=download)
assert len(tfds.builder("gopro_spike", data_dir=sys.argv[2]).as_data_source("train")) == 9
config = default_data_config()
config.update(source="tfds", root=str(builder.data_dir), crop_size=16, clip_length=3)
print("shape", next(train_iterator(config, 0))["blur"].shape)
print("loaded", [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch")])
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(gopro.root), str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert "shape (1, 3, 16, 16, 3)\nloaded []\n" in result.stdout, result.stderr


def test_a_stopped_preparation_goes_on_where_it_was(plain_set, tmp_path, monkeypatch):
    seen = []

    def stop(done, total, name):
        seen.append(name)
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("svrt", plain_set.root, tmp_path / "out", SMALL_TILES, stop)
    assert not list(tmp_path.glob("out/*/*/1.0.0"))
    encoded = []
    encode = prepare_module.write_shard

    def write_shard(path, identity, sequence, *rest):
        encoded.append(sequence.files.name)
        return encode(path, identity, sequence, *rest)

    monkeypatch.setattr(prepare_module, "write_shard", write_shard)
    report = prepare("svrt", plain_set.root, tmp_path / "out", SMALL_TILES)
    # Splits come in order of name: test/seq2 (5 frames) was finished, train/seq0 was not.
    assert encoded == ["seq0", "seq1"]
    assert report.frames == {"test": 5, "train": 9}
    # A third time there is nothing to do.
    assert prepare("svrt", plain_set.root, tmp_path / "out", SMALL_TILES) == report
    assert encoded == ["seq0", "seq1"]


def test_sequences_with_faults_are_left_out_and_listed(plain_set, tmp_path):
    (plain_set.root / "train/seq1/sharp/00000002.png").unlink()
    damaged = plain_set.root / "test/seq2/blur/00000001.png"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 0xFF
    damaged.write_bytes(data)
    plain_set.add(split="test", sequence=3)
    report = prepare("svrt", plain_set.root, tmp_path / "out", SMALL_TILES)
    assert report.sequences == {"train": 1, "test": 1}
    left_out = {f"{split}/{name}": reason for split, name, reason in report.skipped}
    assert set(left_out) == {"train/seq1", "test/seq2"}
    assert "00000002" in left_out["train/seq1"]
    assert "00000001.png" in left_out["test/seq2"] and "damaged" in left_out["test/seq2"]


def test_a_set_made_from_other_files_is_not_touched(plain_set, tmp_path):
    report = prepare("svrt", plain_set.root, tmp_path / "out", SMALL_TILES)
    before = {p: p.stat().st_mtime_ns for p in report.folder.iterdir()}
    plain_set.add(sequence=7)
    with pytest.raises(ValueError, match="made from other files"):
        prepare("svrt", plain_set.root, tmp_path / "out", SMALL_TILES)
    assert {p: p.stat().st_mtime_ns for p in report.folder.iterdir()} == before


def test_voxel_statistics_are_those_of_the_frames(plain_set, tmp_path):
    report = prepare("svrt", plain_set.root, tmp_path / "out", PrepareOptions(bins=4))
    config = plain_set.config(clip_length=1, eval_split="test")
    config.voxel.bins = 4
    from vrtspike_jax.spikes import voxelize

    # The first split by name is "test", and 4 of its 5 frames are sampled.
    voxels = [voxelize(clip["spikes"][0], 4) for _, clip in eval_clips(config)]
    sampled = np.stack([voxels[i] for i in (0, 1, 2, 4)])
    assert report.voxel["mean"] == pytest.approx(sampled.mean(), rel=1e-5)
    assert report.voxel["std"] == pytest.approx(sampled.std(), rel=1e-5)


def test_a_damaged_record_is_named(plain_set, tmp_path):
    report = prepare("svrt", plain_set.root, tmp_path / "out", SMALL_TILES)
    shard = next(pathlib.Path(report.folder).glob("*test.array_record-00000*"))
    data = bytearray(shard.read_bytes())
    start = data.rindex(b"\x89PNG")
    data[start : start + 40] = bytes(40)
    shard.write_bytes(data)
    config = plain_set.config(source="tfds", root=str(report.folder))
    with pytest.raises(ValueError, match="record of seq2/0000000"):
        list(eval_clips(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("metadata.json", '"format": 1', '"format": 9'), "found format 9, wanted 1"),
        (("metadata.json", '"seq0"', '"seq9"'), "found a record of"),
        (("metadata.json", '"steps": 8', '"steps": 800000000'), "broken entry"),
        (("metadata.json", '"steps": 8', '"steps": 16'), "found spike_size"),
        (("dataset_info.json", '"array_record"', '"../../array_record"'), "TFDS data set|leads"),
        (("dataset_info.json", "{", "["), "not a readable TFDS data set"),
    ],
)
def test_metadata_is_not_trusted(plain_set, tmp_path, change, message):
    report = prepare("svrt", plain_set.root, tmp_path / "out", SMALL_TILES)
    name, old, new = change
    path = report.folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    config = plain_set.config(source="tfds", root=str(report.folder), max_bad_clips=0)
    with pytest.raises(ValueError, match=message):
        next(train_iterator(config, 0))
