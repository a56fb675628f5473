"""The baseline without recomputation and with a larger batch, for devices with 80 GB and more."""

import ml_collections

from configs import baseline


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = baseline.get_config(arg)
    config.model.remat = "none"
    config.data.batch_size = 2
    config.optim.accumulation_steps = 3  # six clips a step, as in the baseline
    return config
