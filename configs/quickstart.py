"""A small model on rendered scenes: trains, scores and shows its result on two CPU cores.

    python -m vrtspike_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Needs no download. It is the whole system in little: every part of the baseline is there, with few
channels and blocks, three frames, and windows of 4 x 4, so that a CPU compiles and runs it in
minutes. There is no flow network: neighbours are aligned by what the deformable convolutions learn.
"""

import ml_collections

from configs import baseline

CHANNELS = 16


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = baseline.get_config(arg)
    config.num_steps = 160
    config.log_every_steps = 10
    config.checkpoint_every_steps = 40
    config.eval_every_steps = 160

    model, vrt = config.model, config.model.vrt
    model.dtype = "float32"  # CPUs compute bfloat16 slowly
    model.remat = "none"
    vrt.window_size = (3, 4, 4)
    vrt.depths = (1,) * 8
    vrt.indep_reconsts = ()
    vrt.embed_dims = (CHANNELS,) * 8
    vrt.num_heads = (2,) * 8
    vrt.drop_path_rate = 0.0
    vrt.optical_flow = "none"
    vrt.deformable_groups = 2
    model.channels_per_scale = (CHANNELS,) * 4
    model.spike_bins = 8
    model.tsa_heads = model.fuse_heads = 2
    # So short a training does not find out by itself which spikes belong to which frame.
    model.time_slope = 4.0
    model.max_batch_tokens = None

    data = config.data
    data.source = "scenes"
    data.root = ""
    data.clip_length = 3
    data.crop_size = 32
    data.batch_size = 4
    data.steps = 64
    data.voxel.bins = 8
    data.voxel.mean, data.voxel.std = 1.5, 0.5
    data.num_workers = 0
    data.scenes.height = data.scenes.width = 64
    data.scenes.eval_clips = 16
    data.scenes.render.blur = (8.0, 20.0)

    optim = config.optim
    optim.name = "muon"
    optim.b1 = 0.95
    optim.learning_rate = 3e-3
    optim.warmup_steps = 20
    optim.accumulation_steps = 1
    optim.freeze_flow_steps = -1
    optim.ema_decay = 0.0

    config.loss.vgg_weight = 0.0
    config.init.spynet = ""
    config.eval.tile_size = 0
    return config
