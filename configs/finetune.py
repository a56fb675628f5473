"""The shipped model, trained on with a data set of your own: another camera, other scenes.

    python -m vrtspike_jax.main --config=configs/finetune.py --workdir=runs/own \
        --config.data.root=data/own

The data set has the splits "train" and "test" (docs/data.md). `--config.data.spike_scale=(1,1)`
where spikes have the frames' resolution.
"""

import ml_collections

from configs import small


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    if arg:
        raise ValueError(f"configs/finetune.py:{arg}: expected no argument")
    config = small.get_config()
    config.init.params = "small"
    config.num_steps = 4_000
    config.checkpoint_every_steps = 500
    config.eval_every_steps = 1_000
    config.optim.learning_rate = 3e-4
    config.data.source = "plain"
    config.data.root = "data/own"
    config.data.steps = 0
    config.data.voxel.steps = 88  # the camera that the model knows; yours may have any
    config.data.num_workers = 4
    config.eval.max_clips = 32
    return config
