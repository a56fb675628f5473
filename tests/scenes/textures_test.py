import importlib.machinery
import importlib.util
import pathlib

import cv2
import numpy as np
import pytest

from vrtspike_jax.scenes import render_clip, scene_options
from vrtspike_jax.scenes.photographs import (
    SHIPPED,
    PhotographError,
    load_photograph,
    shipped_photographs,
)
from vrtspike_jax.scenes.shapes import random_mask
from vrtspike_jax.scenes.textures import (
    POOL,
    cut,
    generated_texture,
    random_texture,
    recolored,
    turned,
)


def test_every_listed_photograph_ships_with_scikit_image():
    for split in ("train", "eval"):
        paths = shipped_photographs(split)
        assert len(paths) == len(SHIPPED[split])
        for path in paths:
            assert load_photograph(path)[0].ndim == 3


def test_training_and_scoring_share_no_photograph():
    assert not set(SHIPPED["train"]) & set(SHIPPED["eval"])
    # Views of one scene count as one photograph.
    stems = {name.split("_")[0].split(".")[0] for name in SHIPPED["train"]}
    assert not stems & {name.split("_")[0].split(".")[0] for name in SHIPPED["eval"]}


def test_training_and_scoring_share_no_generated_texture():
    pools = [
        {generated_texture(split, index).tobytes() for index in range(6)}
        for split in ("train", "eval")
    ]
    assert len(pools[0]) == len(pools[1]) == 6
    assert not pools[0] & pools[1]


def test_a_seed_means_different_clips_in_the_two_splits():
    one, two = (
        render_clip(0, 1, 32, 32, steps=8, split=split, generated=1.0)["sharp"]
        for split in ("train", "eval")
    )
    assert np.abs(one.astype(int) - two).mean() > 5


def test_generated_textures_are_the_same_each_time_and_have_contrast():
    for index in range(6):
        texture = generated_texture("train", index)
        generated_texture.cache_clear()
        np.testing.assert_array_equal(texture, generated_texture("train", index))
        assert texture.shape == (384, 384, 3)
        assert texture.dtype == np.uint8
        assert texture.std() > 5
    assert POOL >= 6


def test_photographs_come_in_several_sizes_of_the_same_picture():
    sizes = load_photograph(shipped_photographs("train")[0])
    assert max(sizes[0].shape) <= 1024
    sides = [size.shape[0] for size in sizes]
    assert sides == sorted(sides, reverse=True)
    small = cv2.resize(sizes[0], sizes[-1].shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - sizes[-1]).mean() < 1


def test_own_photographs_are_used(tmp_path):
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), np.full((80, 90, 3), (0, 0, 200), np.uint8))
    clip = render_clip(
        0, 1, 32, 32, steps=4, photographs=(str(path),), own_photographs=1.0, generated=0.0,
        recolor=0.0,
    )  # fmt: skip
    assert (clip["sharp"] == [200, 0, 0]).all(axis=-1).mean() > 0.95


def test_a_single_path_need_not_be_wrapped():
    assert scene_options(photographs="a.png").photographs == ("a.png",)
    assert scene_options(photographs=[pathlib.Path("a.png")]).photographs == ("a.png",)


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_an_unusable_photograph_raises_and_names_itself(tmp_path, content):
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PhotographError, match=r"bad\.png"):
        render_clip(0, 1, 32, 32, photographs=(str(path),), own_photographs=1.0, generated=0.0)


def installed_without(monkeypatch, tmp_path, left):
    """scikit-image as it might be one day: without most of its pictures."""
    (tmp_path / "data").mkdir()
    for path in map(pathlib.Path, shipped_photographs("train")[:left]):
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    spec = importlib.machinery.ModuleSpec("skimage", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_pictures_that_are_no_longer_shipped_are_left_out_with_a_warning(monkeypatch, tmp_path):
    installed_without(monkeypatch, tmp_path, left=2)
    with pytest.warns(UserWarning, match="found 2 of"):
        assert len(shipped_photographs.__wrapped__("train")) == 2


def test_no_pictures_at_all_raises_and_says_what_to_do(monkeypatch, tmp_path):
    installed_without(monkeypatch, tmp_path, left=0)
    with pytest.raises(PhotographError, match=r"generated=1\.0"):
        shipped_photographs.__wrapped__("train")


def test_an_unknown_split_raises():
    with pytest.raises(ValueError, match="split"):
        shipped_photographs("test")
    with pytest.raises(ValueError, match="split"):
        generated_texture("test", 0)


def test_a_cut_is_a_piece_of_the_texture_and_mirrors_beyond_it():
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)
    piece = cut(rng, texture, 10, 8)
    assert any(
        (texture[y : y + 10, x : x + 8] == piece).all() for y in range(21) for x in range(13)
    )
    large = cut(rng, texture, 100, 75)
    assert large.shape == (100, 75, 3)
    np.testing.assert_array_equal(large[30:60, :20], texture[::-1])


def test_turning_gives_all_eight_ways_to_lay_a_texture_down():
    texture = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    rng = np.random.default_rng(1)
    found = {turned(rng, texture).tobytes() for _ in range(200)}
    assert len(found) == 8


def test_recolouring_with_strength_0_changes_nothing():
    texture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(recolored(rng, texture, 0.0), texture)
    assert (recolored(rng, texture, 1.0) != texture).any()


def test_large_textures_are_preferred_where_much_is_needed():
    rng = np.random.default_rng(0)
    options = scene_options(generated=0.0)
    for _ in range(40):
        texture = random_texture(rng, "train", options, 250)
        assert min(texture.shape[:2]) >= 250 or min(texture.shape[:2]) == 191  # page.png


def test_masks_cover_between_0_and_1_and_are_clear_at_the_border():
    rng = np.random.default_rng(0)
    for softness in (0.0, 2.0):
        for _ in range(40):
            mask = random_mask(rng, 24, softness)
            assert mask.dtype == np.float32
            assert mask.min() == 0
            assert 0.5 < mask.max() <= 1
            assert not mask[[0, 1, -2, -1]].any()
            assert not mask[:, [0, 1, -2, -1]].any()


def test_soft_edges_are_wider_than_hard_ones():
    def edge_share(softness):
        masks = [random_mask(np.random.default_rng(i), 40, softness) for i in range(20)]
        return np.mean([((m > 0.05) & (m < 0.95)).mean() for m in masks])

    assert edge_share(2.0) > 1.5 * edge_share(0.0)
