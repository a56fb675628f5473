import json

import numpy as np
import pytest

from vrtspike_jax.evaluation import (
    StoppedError,
    evaluate,
    score_frame,
    spike_reconstructions,
    strip,
    write_json,
    write_strips,
)
from vrtspike_jax.metrics import psnr, ssim
from vrtspike_jax.scenes import render_clip
from vrtspike_jax.spikes import trained_counts


@pytest.fixture(scope="module")
def clips():
    found = []
    for seed, name in ((1, "a"), (2, "a"), (3, "b")):
        found.append((name, render_clip(seed, num_frames=2, height=32, width=48, steps=32)))
    return found


def sharpen(batch):
    """Restores nothing: the blurred frames as floats."""
    return [blur / np.float32(255) for blur, _ in batch]


def test_scores_are_means_over_frames_of_a_sequence_and_then_over_sequences(clips):
    result = evaluate(sharpen, clips, bins=4)
    per_frame = {"a": [], "b": []}
    for name, clip in clips:
        for blur, sharp in zip(clip["blur"], clip["sharp"], strict=True):
            per_frame[name].append(psnr(blur, sharp))
    means = [np.mean(values) for values in per_frame.values()]
    assert result.sequence("a", "blurred")["psnr_rgb"] == pytest.approx(means[0])
    assert result.mean("blurred")["psnr_rgb"] == pytest.approx(np.mean(means))
    assert result.mean("restored") == pytest.approx(result.mean("blurred"))
    assert (result.clips, result.to_json()["frames"]) == (3, 6)


def test_batches_hold_clips_of_one_size_and_change_no_score(clips):
    sizes = []

    def restore(batch):
        sizes.append([blur.shape[2] for blur, _ in batch])
        return sharpen(batch)

    narrow = (
        "c",
        {
            key: value[..., :24, :] if key != "spikes" else value[..., :12]
            for key, value in clips[0][1].items()
        },
    )
    apart = evaluate(sharpen, [*clips, narrow], bins=4)
    together = evaluate(restore, [*clips, narrow], bins=4, batch_size=2)
    assert sizes == [[48, 48], [48], [24]]
    assert together.to_json() == apart.to_json()


def test_frames_shown_before_count_once(clips):
    name, clip = clips[0]
    again = {**clip, "new": np.array([False, True])}
    result = evaluate(sharpen, [(name, clip), (name, again)], bins=4)
    assert len(result.frames[name, "restored"]) == 3


def test_the_model_gets_counts_per_bin(clips):
    def restore(batch):
        (_, counts), (_, clip) = batch[0], clips[0]
        assert counts.dtype == np.uint8 and counts.shape == (2, 16, 24, 4)
        np.testing.assert_array_equal(counts.sum(-1), clip["spikes"].sum(1))
        return sharpen(batch)

    evaluate(restore, clips[:1], bins=4)


def test_the_model_gets_the_counts_of_its_camera(clips):
    def restore(batch):
        wanted = trained_counts(clips[0][1]["spikes"], 4, 2)
        np.testing.assert_array_equal(batch[0][1], wanted)
        assert (wanted != trained_counts(clips[0][1]["spikes"], 4, 0)).any()
        return sharpen(batch)

    evaluate(restore, clips[:1], bins=4, trained_steps=2)


def test_scores_are_those_of_saved_pictures_and_an_exact_copy_is_capped():
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 256, (16, 16, 3), np.uint8)
    nearly = sharp / np.float32(255) + 1e-4
    assert score_frame(nearly, sharp) == {"psnr_rgb": 100, "psnr_y": 100, "ssim_y": 1.0}
    other = np.clip(sharp / 255 + rng.normal(0, 0.1, sharp.shape), 0, 1)
    saved = np.round(other * 255).astype(np.uint8)
    assert score_frame(other, sharp)["psnr_rgb"] == pytest.approx(psnr(saved, sharp))
    assert score_frame(other, sharp)["ssim_y"] == pytest.approx(ssim(saved, sharp, y_channel=True))


def test_spike_reconstructions_have_the_colours_and_light_of_the_blurred_frame(clips):
    clip = clips[2][1]
    gray = np.array([0.299, 0.587, 0.114])
    blur = clip["blur"] / 255
    for name, frames in spike_reconstructions(clip["blur"], clip["spikes"]):
        assert name in ("tfp", "tfi") and frames.shape == blur.shape
        assert (frames @ gray).mean() == pytest.approx((blur @ gray).mean(), abs=0.03)
        inside = ((frames > 0) & (frames < 1)).all(-1)
        chroma = (frames - (frames @ gray)[..., None])[inside]
        np.testing.assert_allclose(chroma, (blur - (blur @ gray)[..., None])[inside], atol=1e-5)


def test_tfi_gains_on_the_blurred_frame_as_motion_grows():
    still = render_clip(5, num_frames=1, height=48, width=48, steps=88, blur=(0.0, 0.0))
    fast = render_clip(5, num_frames=1, height=48, width=48, steps=88, blur=(40.0, 40.0))
    scores = {}
    for name, clip in (("still", still), ("fast", fast)):
        scores[name] = evaluate(sharpen, [("s", clip)], bins=4, baselines=True)
    gap = {n: s.mean("tfi")["psnr_y"] - s.mean("blurred")["psnr_y"] for n, s in scores.items()}
    assert gap["fast"] > gap["still"]


def test_strips_and_json_are_written_under_safe_names(clips, tmp_path):
    evil = [("../up\\<b>", clips[0][1])]
    result = evaluate(sharpen, evil, bins=4, baselines=True, strips=3)
    write_strips(result, tmp_path / "strips")
    files = list((tmp_path / "strips").iterdir())
    assert [f.name for f in files] == ["00_.._up__b_.png"]
    write_json(result.to_json(), tmp_path / "eval" / "metrics.json")
    read = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert set(read["mean"]) == {"blurred", "tfp", "tfi", "restored"}
    assert set(read["sequences"][evil[0][0]]["restored"]) == {"psnr_rgb", "psnr_y", "ssim_y"}
    assert len(list(tmp_path.rglob("*.tmp"))) == 0


def test_a_strip_is_blurred_restored_sharp_from_left_to_right():
    frames = [np.full((4, 5, 3), value, np.uint8) for value in (10, 200)]
    picture = strip(frames[0], np.full((4, 5, 3), 0.5, np.float32), frames[1])
    assert picture.shape == (4, 15, 3) and picture.dtype == np.uint8
    assert picture[0, [0, 5, 10], 0].tolist() == [10, 128, 200]


def test_stopping_and_an_empty_split_are_told(clips):
    with pytest.raises(StoppedError):
        evaluate(sharpen, clips, bins=4, should_stop=lambda: True)
    with pytest.raises(ValueError, match="no clips"):
        evaluate(sharpen, [], bins=4)
