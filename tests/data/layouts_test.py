import os
import shutil

import numpy as np
import pytest
from example_sets import (
    HEIGHT,
    STEPS,
    WIDTH,
    assert_holds,
    frame_image,
    frame_spikes,
    read_all,
    write_image,
)

from vrtspike_jax.data.pipeline import eval_clips, open_frames, train_iterator
from vrtspike_jax.spikes import write_dat


def one_dat(folder, frames, number=0, name="spike/all.dat", before=0, after=0):
    """Replaces the .dat files of a sequence by a single one."""
    shutil.rmtree(folder / "spike")
    (folder / name).parent.mkdir(exist_ok=True)
    spikes = np.concatenate([frame_spikes(number, i) for i in range(frames)])
    empty = np.zeros((1, *spikes.shape[1:]), np.uint8)
    parts = [np.repeat(empty, before, 0), spikes, np.repeat(empty, after, 0)]
    write_dat(folder / name, np.concatenate(parts))


def test_plain_layout_gives_the_frames_that_were_written(plain_set):
    store = open_frames(plain_set.config(), "train")
    assert store.lengths == (5, 4)
    assert [store.sequence_name(i) for i in range(2)] == ["seq0", "seq1"]
    assert store.frame_name(0, 3) == "00000003"
    for sequence, frames in enumerate(store.lengths):
        assert_holds(store, sequence, sequence, frames)


def test_sequences_may_lie_in_folders_of_scenes(plain_set):
    plain_set.add(split="deep", sequence=4, name="scene 1/clip_a")
    plain_set.add(split="deep", sequence=5, name="scene 1/clip_b")
    store = open_frames(plain_set.config(), "deep")
    assert [store.sequence_name(i) for i in range(2)] == ["scene 1/clip_a", "scene 1/clip_b"]
    assert_holds(store, 1, 5, 5)


def test_jpeg_frames_and_hidden_files_are_no_trouble(plain_set):
    folder = plain_set.root / "train/seq0"
    for i in range(5):
        (folder / f"blur/{i:08d}.png").unlink()
        write_image(folder / f"blur/{i:08d}.jpg", frame_image(0, i, 0))
    (folder / "blur/.DS_Store").write_bytes(b"x")
    (folder / "sharp/notes.txt").write_text("x")
    blur, sharp, _ = read_all(open_frames(plain_set.config(), "train"), 0)
    assert np.abs(blur[2].astype(int) - frame_image(0, 2, 0)).mean() < 4
    np.testing.assert_array_equal(sharp[2], frame_image(0, 2, 1))


@pytest.mark.parametrize("name", ["spike/all.dat", "spike.dat"])
def test_one_dat_is_cut_into_steps_per_frame(plain_set, name):
    for number, frames in ((0, 5), (1, 4)):
        one_dat(plain_set.root / f"train/seq{number}", frames, number, name)
    store = open_frames(plain_set.config(steps=STEPS), "train")
    assert_holds(store, 0, 0, 5)
    assert_holds(store, 1, 1, 4)


def test_one_dat_with_an_alignment_log(plain_set):
    # The recording begins 20 steps before the first exposure, at 2000 steps a second.
    shutil.rmtree(plain_set.root / "train/seq1")
    one_dat(plain_set.root / "train/seq0", 5, before=20, after=3)
    rows = ["frame_idx,t0,t1,event_count,seq"]
    for i in range(5):
        first = 20 + i * STEPS
        rows.append(f"{i},{first / 2000:.6f},{(first + STEPS - 1) / 2000:.6f},1,train/seq0")
    (plain_set.root / "logs").mkdir()
    (plain_set.root / "logs/align.txt").write_text("\n".join(rows))
    config = plain_set.config(alignment_log="logs/align.txt", steps_per_second=2000.0)
    assert_holds(open_frames(config, "train"), 0, 0, 5)


def test_x4k_layout_cuts_exposures_around_the_step_in_the_name(x4k):
    store = open_frames(x4k.config(layout="x4k"), "train")
    assert store.sequence_name(0) == "002/occ008.320_f2881"
    blur, sharp, spikes = read_all(store, 0)
    for i, middle in enumerate((16, 17, 20)):
        np.testing.assert_array_equal(blur[i], frame_image(0, i, 0))
        np.testing.assert_array_equal(sharp[i], frame_image(0, i, 1))
        np.testing.assert_array_equal(spikes[i], x4k.spikes[middle - 16 : middle + 17])


def test_x4k_exposures_outside_the_recording_are_errors(x4k):
    for part, kind in (("train_blurry_33", 0), ("train_fullRGB", 1)):
        image = x4k.root / part / "002/occ008.320_f2881/0005_000.png"
        write_image(image, frame_image(0, 3, kind))
    with pytest.raises(ValueError, match=r"spike\.dat: found 37 steps.*0005_000.*5 to 37"):
        open_frames(x4k.config(layout="x4k"), "train")


def test_x4k_with_several_exposure_lengths_asks_which(x4k):
    (x4k.root / "train_blurry_65").mkdir()
    with pytest.raises(ValueError, match=r"train_blurry_33.*train_blurry_65.*config.data.steps"):
        open_frames(x4k.config(layout="x4k"), "train")
    assert open_frames(x4k.config(layout="x4k", steps=33), "train").lengths == (3,)


def test_scoring_covers_every_frame_once(plain_set):
    # 5 frames in clips of 3: the second clip reaches back by one.
    clips = list(eval_clips(plain_set.config()))
    assert [name for name, _ in clips] == ["seq2", "seq2"]
    assert [clip["frames"][0] for _, clip in clips] == ["00000000", "00000002"]
    shown = [f for _, c in clips for f, new in zip(c["frames"], c["new"], strict=True) if new]
    assert shown == [f"{i:08d}" for i in range(5)]
    for _, clip in clips:
        for k, frame in enumerate(clip["frames"]):
            np.testing.assert_array_equal(clip["blur"][k], frame_image(2, int(frame), 0))
            np.testing.assert_array_equal(clip["spikes"][k], frame_spikes(2, int(frame)))


def test_scoring_is_shared_among_hosts_without_gap_or_overlap(plain_set):
    plain_set.add(split="test", sequence=3, frames=8)
    config = plain_set.config()
    whole = [(name, clip["frames"]) for name, clip in eval_clips(config)]
    parts = [[(n, c["frames"]) for n, c in eval_clips(config, i, 2)] for i in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    assert len(eval_clips(config, 1, 2)) == len(parts[1])


# Faults: what is done to the set, config fields, and what the message must say.


def remove(path):
    return lambda root: (root / path).unlink()


def truncate(path, to):
    return lambda root: os.truncate(root / path, to)


def replace(path, image):
    return lambda root: write_image(root / path, image)


BYTES = STEPS * HEIGHT * WIDTH // 4 // 8
FAULTS = {
    "truncated .dat": (
        truncate("train/seq1/spike/00000002.dat", BYTES - 1),
        {},
        rf"seq1/spike/00000002\.dat: found {BYTES - 1} bytes.*multiple of",
    ),
    "a .dat that lacks steps": (
        truncate("train/seq1/spike/00000002.dat", BYTES // 2),
        {},
        r"00000002\.dat: found 4 steps, wanted 8",
    ),
    "empty .dat": (truncate("train/seq0/spike/00000000.dat", 0), {}, r"00000000\.dat.*empty"),
    "other steps than the config says": (
        lambda root: None,
        {"steps": 88},
        r"00000000\.dat: found 8 steps, wanted 88 as config\.data\.steps",
    ),
    "missing .dat": (
        remove("train/seq0/spike/00000003.dat"),
        {},
        r"found 4 files of spikes for 5 blurred frames.*blur/00000003\.png",
    ),
    "missing ground truth": (
        remove("train/seq0/sharp/00000001.png"),
        {},
        r"found 4 files of ground truth for 5 blurred frames.*blur/00000001\.png",
    ),
    "no ground truth at all": (
        lambda root: shutil.rmtree(root / "train/seq1/sharp"),
        {},
        r"train/seq1/sharp: no such folder; wanted the ground truth",
    ),
    "no spikes at all": (
        lambda root: shutil.rmtree(root / "train/seq1/spike"),
        {},
        r"train/seq1/spike: no such folder; wanted the spikes",
    ),
    "no blurred frames": (
        lambda root: shutil.rmtree(root / "train/seq1/blur"),
        {},
        r"train/seq1/blur: no such folder; wanted the blurred frames",
    ),
    "an empty folder": (
        lambda root: [p.unlink() for p in (root / "train/seq1/blur").iterdir()],
        {},
        r"train/seq1/blur: found no images",
    ),
    "more ground truth than frames": (
        lambda root: write_image(root / "train/seq0/sharp/00000009.png", frame_image(0, 1, 1)),
        {},
        r"found 6 files of ground truth for 5 blurred frames.*00000009\.png",
    ),
    "a frame twice": (
        lambda root: write_image(root / "train/seq0/blur/00000002.jpg", frame_image(0, 1, 1)),
        {},
        r"found frame '00000002' twice",
    ),
    "an image of another size": (
        replace("train/seq0/sharp/00000002.png", frame_image(0, 2, 1, 24, 32)),
        {},
        r"sharp/00000002\.png: found 24 x 32 pixels, wanted 48 x 64",
    ),
    "a truncated image": (
        truncate("train/seq1/blur/00000001.png", 200),
        {},
        r"seq1/blur/00000001\.png.*(damaged|not a readable)",
    ),
    "a text file as image": (
        lambda root: (root / "train/seq1/blur/00000001.png").write_text("hello" * 9),
        {},
        r"seq1/blur/00000001\.png: not a readable PNG",
    ),
    "an image above the limit": (
        lambda root: None,
        {"max_image_pixels": 1000},
        r"00000000\.png: found an image of 48 x 64 pixels.*max_image_pixels=1000",
    ),
    "a clip longer than a sequence": (
        lambda root: None,
        {"clip_length": 5},
        r"seq1/blur: found 4 frames, wanted at least 5 for a clip",
    ),
    "a stride that leads out of a sequence": (
        lambda root: None,
        {"frame_stride": 2},
        r"seq1/blur: found 4 frames, wanted at least 5",
    ),
    "a crop larger than the frame": (
        lambda root: None,
        {"crop_size": 64},
        r"seq0.*height 48, wanted at least crop_size=64",
    ),
    "another spike size than the config says": (
        lambda root: None,
        {"spike_height": 16, "spike_width": 32},
        r"found spikes of 16 x 32 .*wanted 24 x 32 .*spike_scale=\(0\.333333, 0\.5\)",
    ),
    "another spike size than config.yaml says": (
        lambda root: (root / "config.yaml").write_text("spike_h: 250\nspike_w: 400\n"),
        {},
        r"found spikes of 250 x 400 \(config\.yaml",
    ),
    "a broken config.yaml": (
        lambda root: (root / "train/config.yaml").write_text("spike_h: -1\nspike_w: 400\n"),
        {},
        r"config\.yaml: found -1 for spike_h",
    ),
    "one .dat without the length of an exposure": (
        lambda root: one_dat(root / "train/seq0", 5),
        {},
        r"all\.dat: found one \.dat for 5 frames; wanted .*config\.data\.steps",
    ),
    "one .dat that is too long": (
        lambda root: one_dat(root / "train/seq0", 5, after=1),
        {"steps": STEPS},
        r"all\.dat: found 41 steps, wanted 40",
    ),
    "one .dat that is too short": (
        lambda root: one_dat(root / "train/seq0", 4),
        {"steps": STEPS},
        r"all\.dat: found 32 steps; frame 00000004 was exposed during steps 32 to 39",
    ),
    "no such split": (
        lambda root: None,
        {"train_split": "training"},
        r"training: no such folder; wanted the split, found \['test', 'train'\]",
    ),
    "an empty split": (
        lambda root: (root / "nothing").mkdir(),
        {"train_split": "nothing"},
        r"found no sequence in split 'nothing'",
    ),
    "no such data set": (
        lambda root: shutil.rmtree(root),
        {},
        r"set: no such folder; wanted the data set \(config\.data\.root",
    ),
    "no alignment log": (
        lambda root: None,
        {"alignment_log": "align.txt"},
        r"align\.txt: no such alignment log",
    ),
    "an alignment log beside exposures in files of their own": (
        lambda root: (root / "a.txt").write_text("frame_idx,t0,t1,event_count,seq\n"),
        {"alignment_log": "a.txt"},
        r"one \.dat a frame.*empty config\.data\.alignment_log",
    ),
    "an alignment log from elsewhere": (
        lambda root: None,
        {"alignment_log": "../align.txt"},
        r"found path '\.\./align\.txt', wanted one inside it",
    ),
    "a split from elsewhere": (
        lambda root: None,
        {"train_split": "../set/train"},
        r"wanted one inside it",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_before_training(plain_set, fault):
    damage, fields, message = FAULTS[fault]
    damage(plain_set.root)
    with pytest.raises(ValueError, match=message):
        train_iterator(plain_set.config(**fields), seed=0)


def test_full_verification_finds_what_headers_do_not_show(plain_set):
    path = plain_set.root / "train/seq1/sharp/00000003.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    train_iterator(plain_set.config(), seed=0)
    with pytest.raises(ValueError, match=r"seq1/sharp/00000003\.png: .*damaged"):
        train_iterator(plain_set.config(verify="full"), seed=0)


@pytest.mark.parametrize("what", ["image", "folder", "sequence"])
def test_links_out_of_the_set_are_errors_unless_allowed(plain_set, tmp_path, what):
    path = (
        plain_set.root
        / {
            "image": "train/seq0/blur/00000001.png",
            "folder": "train/seq0/sharp",
            "sequence": "train/seq0",
        }[what]
    )
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(ValueError, match=r"leads out of the data set.*allow_links"):
        open_frames(plain_set.config(), "train")
    assert_holds(open_frames(plain_set.config(allow_links=True), "train"), 0, 0, 5)


def test_links_inside_the_set_are_followed(plain_set):
    # As the original's script splits a set into training and validation.
    (plain_set.root / "val").mkdir()
    (plain_set.root / "val/seq1").symlink_to(plain_set.root / "train/seq1")
    assert_holds(open_frames(plain_set.config(), "val"), 0, 1, 4)


def test_sequences_of_different_sizes_need_a_crop(plain_set):
    plain_set.add(sequence=6, height=32, width=32)
    next(train_iterator(plain_set.config(), seed=0))
    with pytest.raises(ValueError, match="sequences of different sizes"):
        train_iterator(plain_set.config(crop_size=0, rotate=False), seed=0)


def test_turning_needs_square_crops(plain_set):
    with pytest.raises(ValueError, match=r"48 x 64 .*config\.data\.rotate=True"):
        train_iterator(plain_set.config(crop_size=0), seed=0)
    batch = next(train_iterator(plain_set.config(crop_size=0, rotate=False), seed=0))
    assert batch["blur"].shape == (1, 3, 48, 64, 3)
    assert batch["spikes"].shape == (1, 3, 24, 32, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(cropsize=256),
            r"data\.cropsize is no known field; did you mean 'crop_size'",
        ),
        (lambda c: c.voxel.update(K=32), r"config\.data\.voxel\.K is no known field; known: bins"),
        (lambda c: c.update(source="tfrecord"), r"config\.data\.source: found 'tfrecord'"),
        (lambda c: c.update(clip_length=0), r"config\.data\.clip_length: found 0"),
        (lambda c: c.voxel.update(std=0.0), r"config\.data\.voxel\.std: found 0\.0"),
        (lambda c: c.voxel.update(mean=float("nan")), r"config\.data\.voxel\.mean: found nan"),
        (lambda c: c.update(root=""), r"config\.data\.root is empty"),
        (lambda c: c.update(spike_scale=(0.5, -1.0)), r"config\.data\.spike_scale"),
    ],
)
def test_bad_configs_are_errors(plain_set, change, message):
    config = plain_set.config()
    change(config)
    with pytest.raises(ValueError, match=message):
        train_iterator(config, seed=0)
