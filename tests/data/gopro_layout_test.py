import shutil

import numpy as np
import pytest
from example_sets import assert_holds, frame_image, read_all

from vrtspike_jax.data.pipeline import open_frames


def test_gopro_layout(plain_set):
    train = plain_set.root / "train/seq0"
    images = plain_set.root / "GOPRO_Large/train/GOPR0372_07_00"
    spikes = plain_set.root / "GOPRO_Large_spike_seq/train/GOPR0372_07_00/spike"
    spikes.parent.mkdir(parents=True)
    (train / "spike").rename(spikes)
    images.parent.mkdir(parents=True)
    train.rename(images)
    shutil.copytree(images / "sharp", images / "blur_gamma")
    store = open_frames(plain_set.config(layout="gopro"), "train")
    assert store.lengths == (5,) and store.sequence_name(0) == "GOPR0372_07_00"
    assert_holds(store, 0, 0, 5)
    gamma = open_frames(plain_set.config(layout="gopro", blur_folder="blur_gamma"), "train")
    np.testing.assert_array_equal(read_all(gamma, 0)[0][1], frame_image(0, 1, 1))


@pytest.fixture
def gopro_gt(plain_set):
    """The set in the folders that the original's README shows, cut down to one sequence."""
    train, root = plain_set.root / "train/seq0", plain_set.root
    spikes = root / "GOPRO_Large_spike_seq/train/GOPR0372_07_00/spike"
    moves = {"blur": root / "GOPRO_Large/train_GT_blurred/GOPR0372_07_00"}
    moves |= {"sharp": root / "GOPRO_Large/train_GT/GOPR0372_07_00", "spike": spikes}
    for part, folder in moves.items():
        folder.parent.mkdir(parents=True)
        (train / part).rename(folder)
    shutil.rmtree(root / "train")
    return plain_set


def test_gopro_layout_with_gt_folders(gopro_gt):
    store = open_frames(gopro_gt.config(layout="gopro"), "train")
    assert store.lengths == (5,) and store.sequence_name(0) == "GOPR0372_07_00"
    assert_holds(store, 0, 0, 5)


@pytest.mark.parametrize("part", ["train_GT", "train_GT_blurred"])
def test_gopro_with_gt_folders_names_a_sequence_that_one_side_lacks(gopro_gt, part):
    top = gopro_gt.root / "GOPRO_Large"
    other = {"train_GT": "train_GT_blurred", "train_GT_blurred": "train_GT"}[part]
    shutil.copytree(top / part / "GOPR0372_07_00", top / part / "GOPR0379_11_00")
    with pytest.raises(ValueError, match=f"{other}/GOPR0379_11_00: no such folder"):
        open_frames(gopro_gt.config(layout="gopro"), "train")
