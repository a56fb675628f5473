"""The small model: at most 4 M parameters, quick to train, usable on a CPU.

    python -m vrtspike_jax.main --config=configs/small.py --workdir=runs/small
    python -m vrtspike_jax.main --config=configs/small.py:unet_spike --workdir=runs/unet_spike

The argument after the colon is the model's name: "vrt_spike" (default), "vrt" (the same backbone
without spikes) or "unet_spike" (a plain single-frame U-Net with spikes, to compare with).

Most blocks work at 1/4 and 1/8 of the size, where they cost little; nothing but the first and last
stage and a short reconstruction works at full size. There is no flow network. Widths are multiples
of 8, and heads have 16 channels, as the kernels want them.
"""

import ml_collections

from configs import baseline

BINS = 22


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = baseline.get_config()
    config.num_steps = 20_000
    config.log_every_steps = 50
    config.checkpoint_every_steps = 1_000
    config.eval_every_steps = 2_000

    name = arg or "vrt_spike"
    if name not in ("vrt_spike", "vrt", "unet_spike"):
        raise ValueError(f"configs/small.py:{arg}: expected vrt_spike, vrt or unet_spike")
    config.model = unet_config() if name == "unet_spike" else vrt_config(config.model, name)

    data = config.data
    data.source = "scenes"
    data.root = ""
    data.crop_size = 96
    data.batch_size = 16
    data.steps = 88
    data.voxel.bins = BINS
    data.num_workers = 0

    optim = config.optim
    optim.learning_rate = 5e-4
    optim.warmup_steps = 200
    optim.accumulation_steps = 1
    optim.freeze_flow_steps = -1

    config.loss.vgg_weight = 0.0
    config.init.spynet = ""
    config.eval.tile_size = 0
    return config


def vrt_config(model: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """The backbone with or without spikes."""
    vrt = model.vrt
    vrt.depths = (1, 2, 2, 3, 2, 2, 1, 1)
    vrt.indep_reconsts = ()
    vrt.embed_dims = (32, 48, 64, 64, 64, 48, 32, 32)
    vrt.num_heads = (2, 3, 4, 4, 4, 3, 2, 2)
    vrt.drop_path_rate = 0.0
    vrt.optical_flow = "none"
    vrt.deformable_groups = 4
    model.remat = "none"
    if name == "vrt":
        shared = {key: model[key] for key in ("dtype", "remat", "kernels")}
        return ml_collections.ConfigDict({"name": name, "vrt": vrt, **shared})
    model.spike_bins = BINS
    model.channels_per_scale = vrt.embed_dims[:4]
    # Without it, training finds out late which spikes belong to which frame.
    model.time_slope = 4.0
    model.spike_input = True
    return model


def unet_config() -> ml_collections.ConfigDict:
    """The U-Net, of 4.9 M parameters."""
    model = ml_collections.ConfigDict()
    model.name = "unet_spike"
    model.dtype = "bfloat16"
    model.remat = "none"  # or "block"
    model.kernels = "auto"
    model.spike_bins = BINS
    model.channels = (32, 64, 128, 256)  # at scales 1, 1/2, 1/4, 1/8
    model.blocks = 1  # residual blocks at each scale of each encoder and of the decoder
    return model
