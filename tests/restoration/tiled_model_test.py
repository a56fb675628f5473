import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs import quickstart
from vrtspike_jax.benchmark import random_params
from vrtspike_jax.metrics import psnr
from vrtspike_jax.models.build import build_model
from vrtspike_jax.restoration.restorer import WHOLE, from_model
from vrtspike_jax.scenes import render_clip

SIZE = (128, 160)


@pytest.fixture(scope="module")
def restorer():
    """The quickstart's network with seeded weights that change every frame visibly."""
    config = quickstart.get_config()
    model = build_model(config.model)
    shape = (1, config.data.clip_length, 64, 64)
    arrays = {"blur": np.zeros((*shape, 3)), "spikes": np.zeros((*shape, config.data.voxel.bins))}
    return from_model(model, random_params(model, arrays, seed=1), config, name="seeded weights")


@pytest.mark.slow
def test_tiles_of_a_real_network_differ_from_the_whole_by_less_than_a_twentieth_db(restorer):
    clip = render_clip(3, num_frames=4, height=SIZE[0], width=SIZE[1], steps=16)
    frames, sharp = clip["blur"].astype(np.float32) / 255, clip["sharp"].astype(np.float32) / 255
    whole = restorer.restore(frames, clip["spikes"], tile=WHOLE)
    tiled = restorer.restore(frames, clip["spikes"], tile=96, tile_overlap=48)
    assert psnr(whole, frames) < 40, "these weights change too little to show a seam"
    scores = {name: psnr(x, sharp) for name, x in (("whole", whole), ("tiled", tiled))}
    print(f"dB: {scores}, tiled against whole {psnr(tiled, whole):.1f}")
    assert abs(scores["whole"] - scores["tiled"]) < 0.05
    assert not np.array_equal(whole, tiled), "nothing was cut into tiles"
