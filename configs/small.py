"""The small model: at most 4 M parameters, quick to train, usable on a CPU.

    python -m vrtspike_jax.main --config=configs/small.py --workdir=runs/small
    python -m vrtspike_jax.main --config=configs/small.py:unet_spike --workdir=runs/unet_spike

The argument after the colon is the model's name: "shift_unet" (default), or, to compare with,
"vrt_spike" and "vrt" (the baseline's design made small, with and without spikes) and "unet_spike"
(a plain single-frame U-Net with spikes).

All train with Muon, which is worth more than any choice of a model here: 1.3 to 1.5 dB after 2,000
steps (vrtspike_jax/weights/small.md). Training clips are cut and exposed on the accelerator, from
films and rendered scenes (docs/data.md).
"""

import ml_collections

from configs import baseline

BINS = 88  # one of the 88 steps each


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = baseline.get_config()
    config.num_steps = 20_000
    config.log_every_steps = 50
    config.checkpoint_every_steps = 1_000
    config.eval_every_steps = 2_000

    name = arg or "shift_unet"
    if name in ("shift_unet", "unet_spike"):
        config.model = unet_config(name)
    elif name in ("vrt_spike", "vrt"):
        config.model = vrt_config(config.model, name)
    else:
        known = "shift_unet, vrt_spike, vrt or unet_spike"
        raise ValueError(f"configs/small.py:{arg}: expected {known}")

    data = config.data
    data.source = "scenes"
    data.root = ""
    data.crop_size = 96
    data.batch_size = 16
    data.steps = 88  # at most; fewer in `render_config`
    data.voxel.bins = BINS
    data.voxel.mean, data.voxel.std = 0.318, 0.34
    data.num_workers = 0
    data.scenes.on_device = True
    data.scenes.reels = 512
    data.scenes.train_clips = 2**24
    data.scenes.eval_clips = 32
    data.scenes.height = data.scenes.width = data.crop_size
    data.scenes.render = render_config()

    optim = config.optim
    optim.name = "muon"
    optim.b1 = 0.95
    optim.learning_rate = 1e-3
    optim.warmup_steps = 200
    optim.accumulation_steps = 1
    optim.freeze_flow_steps = -1

    config.loss.vgg_weight = 0.0
    config.init.spynet = ""
    config.eval.tile_size = 0
    return config


def render_config() -> ml_collections.ConfigDict:
    """Half the clips are rendered, half are cut from films; `scripts/gather_media.py` makes both
    folders. The cameras vary about those of the GoPro + spike set: a fifth of the clips have a
    threshold of just 1, a fifth one of up to 4; the same with spike noise. Six of thirteen have
    fewer steps an exposure."""
    render = ml_collections.ConfigDict()
    render.photographs = ("media/train/photographs",)
    render.eval_photographs = ("media/eval/photographs",)
    render.films = ("media/train/films",)
    render.eval_films = ("media/eval/films",)
    render.film_share = 0.5
    render.gain = (0.9, 1.1)
    render.light_change = 0.1
    render.frame_noise = (0.0, 0.01)
    render.threshold = (1.0, 1.0, 1.1, 1.2, 1.3, 4.0)
    render.dark_current = (0.0, 0.01)
    render.spike_noise = (0.0, 0.0, 0.01, 0.02, 0.03, 0.1)
    render.threshold_spread = (0.0, 0.03)
    render.exposure_steps = (88,) * 7 + (60, 44, 30, 22, 15, 11)
    return render


def vrt_config(model: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """The backbone with or without spikes.

    At scales 1, 1/2 and 1/4, where attention costs most and a window sees least, residual
    convolutions treat each frame on its own; attention and warping, which bring the frames
    together, work at 1/8. There is no flow network.
    """
    vrt = model.vrt
    vrt.conv_scales = 3
    vrt.depths = (4, 4, 3, 4, 3, 4, 4, 4)
    vrt.indep_reconsts = ()
    vrt.embed_dims = (32, 64, 80, 80, 80, 64, 32, 32)
    vrt.num_heads = (2, 4, 5, 5, 5, 4, 2, 2)
    vrt.mul_attn_ratio = 0.5  # so that both groups of a stage have plain and shifted windows
    vrt.drop_path_rate = 0.0
    vrt.optical_flow = "none"
    vrt.deformable_groups = 2
    model.remat = "none"
    # All pixels of a training batch at once: their chunks cost more than the memory they save.
    model.max_batch_tokens = 2**18
    if name == "vrt":
        shared = {key: model[key] for key in ("dtype", "remat", "kernels")}
        return ml_collections.ConfigDict({"name": name, "vrt": vrt, **shared})
    model.spike_bins = BINS
    model.channels_per_scale = vrt.embed_dims[:4]
    model.spike_blocks = 1
    model.spike_input = True
    # Without it, training finds out late which spikes belong to which frame.
    model.time_slope = 4.0
    return model


def unet_config(name: str) -> ml_collections.ConfigDict:
    """A U-Net: of 3.94 M parameters, or the plain one, of 4.9 M."""
    model = ml_collections.ConfigDict()
    model.name = name
    model.dtype = "bfloat16"
    model.remat = "none"  # or "block"
    model.kernels = "auto"
    model.spike_bins = BINS
    if name == "unet_spike":
        model.channels = (32, 64, 128, 256)  # at scales 1, 1/2, 1/4, 1/8
        model.gated = False
        model.blocks = 1  # residual blocks at each scale of each encoder and of the decoder
    else:
        model.gated = True  # 0.1 dB and more for 2% more parameters
        model.channels = (32, 128, 128, 128)  # at scales 1, 1/2, 1/4, 1/8
        model.encoder_blocks = (3, 1, 2)  # residual blocks at scales 1/2, 1/4, 1/8
        model.decoder_blocks = (2, 3, 1)  # residual blocks at scales 1, 1/2, 1/4
        model.shift_scale = 2  # from 1/4 on, blocks see the frames before and after
    return model
