"""The baseline for small devices: shorter and smaller clips, recomputation, a light optimiser."""

import ml_collections

from configs import baseline


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = baseline.get_config(arg)
    config.model.remat = "block"
    config.model.vrt.window_size = (3, 8, 8)
    config.data.clip_length = 3
    config.data.crop_size = 128
    config.data.batch_size = 1
    config.optim.accumulation_steps = 12
    config.optim.name = "adafactor"
    config.optim.ema_decay = 0.0
    return config
