"""The baseline's model, trained as the small one: for whoever has a GPU for days.

    python -m vrtspike_jax.main --config=configs/base.py --workdir=runs/base

Clips are cut and exposed on the accelerator, and Muon trains, as in configs/small.py; frames and
spikes are modelled, and their flow starts, as in configs/baseline.py. Crops are a little larger
than the small model's: films need sides of 128 pixels (`scripts/gather_media.py --least-side 128`).
Its first 8,000 steps are in docs/training.md.
"""

import ml_collections

from configs import baseline, small


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    if arg:
        raise ValueError(f"configs/base.py:{arg}: expected no argument")
    config = small.get_config()
    plain = baseline.get_config()
    config.num_steps = 300_000
    config.model = plain.model
    config.init.spynet = plain.init.spynet

    data = config.data
    data.crop_size = data.scenes.height = data.scenes.width = 128
    data.batch_size = 4
    data.voxel.bins = plain.data.voxel.bins
    data.voxel.mean, data.voxel.std = 0.495, 0.405

    config.optim.learning_rate = 5e-4
    config.optim.freeze_flow_steps = plain.optim.freeze_flow_steps
    return config
