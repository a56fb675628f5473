"""The original's baseline: VRT with a spike branch, 5 frames of 256 x 256, 32 spike bins.

    python -m vrtspike_jax.main --config=configs/baseline.py --workdir=runs/baseline \
        --config.data.root=/data/gopro_spike

Every field of a config stands here with its unit and range; the other configs override. A field
can also be set on the command line: `--config.optim.learning_rate=2e-4`.
`docs/from-the-original.md` says which key of the original each one was.
"""

import ml_collections

from vrtspike_jax.data.config import default_data_config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The whole config; `arg` (after a colon in --config=file:arg) is not used."""
    del arg
    config = ml_collections.ConfigDict()
    config.seed = 123  # of initial weights, data order, crops and dropout; 0 .. 2**32 - 1
    # Optimiser steps; the schedule ends here; >= 1. The original's 20 epochs of GoPro's 2,015 clips
    # at 6 clips a step.
    config.num_steps = 6_700
    config.log_every_steps = 20  # steps between lines of metrics.jsonl; >= 1
    config.checkpoint_every_steps = 500  # steps between checkpoints; >= 1
    config.eval_every_steps = 1_000  # steps between validations (each also saves); >= 1
    config.keep_checkpoints = 2  # newest checkpoints to keep, besides the best; >= 1
    config.tensorboard = True  # write TensorBoard events to <workdir>/tensorboard
    config.profile_steps = 0  # steps to trace into <workdir>/profile, from the tenth on; 0: none

    config.model = model_config()
    config.data = data_config()
    config.optim = optim_config()
    config.loss = loss_config()
    config.eval = eval_config()
    config.mesh = mesh_config()

    config.init = init = ml_collections.ConfigDict()
    # Weights to start from: a published VRT or an own model, converted (.safetensors, .npz), a
    # workdir, or "small", the model of this package; "": random.
    init.params = ""
    # Flow network's weights under VRT's names (.npz, .safetensors); "": random, which is a choice
    # to be made knowingly: alignment then has to be learned from nothing.
    # `vrtspike convert` makes the file.
    init.spynet = "weights/spynet.safetensors"
    return config


def model_config() -> ml_collections.ConfigDict:
    model = ml_collections.ConfigDict()
    # or "vrt", without the spike fields; "shift_unet", "unet_spike": vrtspike_jax/models/unet.py
    model.name = "vrt_spike"
    model.dtype = "bfloat16"  # compute dtype: float32, bfloat16, float16; parameters are float32
    # What the backward pass computes again instead of keeping: "none", "light" (whole blocks, save
    # for the attention kernels), "attn", "ffn", "block".
    model.remat = "light"
    # Implementation of attention, feed-forward, warping and sampling: "auto" (own kernels on CUDA
    # GPUs), "xla", "pallas", "cudnn" (of attention).
    model.kernels = "auto"
    model.vrt = vrt = ml_collections.ConfigDict()
    vrt.upscale = 1  # output pixels per input pixel
    vrt.window_size = (5, 8, 8)  # attention window: frames, rows, columns
    vrt.depths = (8,) * 7 + (4,) * 6  # blocks of stages 1 to 7 and of the groups of stage 8
    vrt.indep_reconsts = (11, 12)  # groups of stage 8 that see one frame at a time
    vrt.embed_dims = (96,) * 13  # channels; the first four equal `channels_per_scale`
    vrt.num_heads = (6,) * 13  # attention heads; each divides its embed_dims
    vrt.mul_attn_ratio = 0.75  # share of blocks with mutual attention; 0 .. 1
    vrt.mlp_ratio = 2.0  # width of the feed-forward layers over the channels; > 0
    vrt.drop_path_rate = 0.2  # stochastic depth of the last block; 0 .. 1
    vrt.pa_frames = 2  # neighbours in parallel warping: 2, 4, 6
    # "spynet", or "none": what moves is left to the offsets that the warping learns.
    vrt.optical_flow = "spynet"
    # Scales, from the full size on, where residual convolutions stand for attention and warping;
    # 0, as published, .. 3.
    vrt.conv_scales = 0
    vrt.deformable_groups = 16  # groups with offsets of their own; divide embed_dims
    # Pairs of blocks compiled one by one, not once in a loop: a sixth faster on a GPU.
    vrt.unroll = True
    model.spike_bins = 32  # K, time bins of an exposure; = data.voxel.bins
    model.channels_per_scale = (96,) * 4  # of the spike branch at scales 1, 1/2, 1/4, 1/8
    model.spike_blocks = 2  # residual blocks of the spike encoder at each scale
    model.spike_attention = True  # spikes attend over time before the fusion
    model.spike_input = False  # voxels also enter the backbone's first convolution
    # Voxels are joined by the same ones, warped to the middle of the exposure along a motion that
    # the model estimates.
    model.spike_alignment = False
    model.alignment_reach = 0  # bins of the frames before and after that are warped too; 0 .. K
    # "cross_attention", or "concat": a linear map of both features at each pixel and frame.
    model.fusion = "cross_attention"
    model.tsa_heads = 4  # heads of the spikes' temporal self attention; divide the channels
    model.tsa_dropout = 0.0  # dropout of its weights; 0 .. 1
    model.tsa_mlp_ratio = 2.0  # width of its feed-forward layers; > 0
    model.fuse_heads = 4  # heads of the fusion's cross attention; divide the channels
    model.fuse_dropout = 0.0  # dropout of its weights; 0 .. 1
    model.fuse_mlp_ratio = 2.0  # width of its feed-forward layers; > 0
    # Where the heads' learned slopes start, by which attention to spikes falls with the distance in
    # frames; 0, as published, is without.
    model.time_slope = 0.0
    # Pixels (times batch) in one chunk of temporal attention; bounds memory on large frames.
    model.max_batch_tokens = 65_536
    return model


def data_config() -> ml_collections.ConfigDict:
    data = default_data_config()  # every field: vrtspike_jax/data/config.py
    data.source = "plain"
    data.root = "data/gopro_spike"  # <root>/<split>/<sequence>/{blur,sharp,spike}
    data.train_split = "train"
    data.eval_split = "test"
    data.clip_length = 5  # T, frames
    data.crop_size = 256  # pixels; 0 (whole frames), or a multiple of 8, at least 8 windows
    data.batch_size = 1  # clips of all devices together, in one forward pass
    data.voxel.bins = 32
    data.num_workers = 4
    return data


def optim_config() -> ml_collections.ConfigDict:
    optim = ml_collections.ConfigDict()
    # "adamw", "adamw_bf16" (bfloat16 first moment), "muon" (orthogonal updates of matrices, Adam's
    # of the rest; takes Adam's learning rates, or twice those), "adafactor" (tiny state)
    optim.name = "adamw"
    optim.learning_rate = 1e-4  # peak; > 0
    optim.warmup_steps = 256  # linear from a thousandth of the peak; then a cosine to 0; >= 0
    optim.b1 = 0.9  # decay of the first moment; 0 .. 1
    optim.b2 = 0.99  # decay of the second moment; 0 .. 1
    optim.eps = 1e-8  # > 0
    optim.weight_decay = 1e-4  # decoupled, times the learning rate; >= 0
    optim.clip_norm = 1.0  # global gradient norm; 0: no clipping
    optim.accumulation_steps = 6  # micro-batches of data.batch_size clips in one step; >= 1
    # Modules (names in parameter paths) that are frozen first and slower later.
    optim.flow_modules = ("spynet",)
    optim.flow_lr_scale = 0.25  # their learning rate over the others'; >= 0
    optim.freeze_flow_steps = 1_000  # steps for which they are frozen; -1: for ever
    optim.ema_decay = 0.999  # moving average of the parameters, used for scores; 0: none
    # Stop after this many steps in a row with a non-finite loss or gradient (each is skipped); >= 1
    optim.max_skipped_in_row = 20
    optim.loss_spike_factor = 5.0  # a loss this many times its average is reported; > 1
    return optim


def loss_config() -> ml_collections.ConfigDict:
    loss = ml_collections.ConfigDict()
    loss.charbonnier_weight = 1.0  # > 0
    loss.charbonnier_delta = 1e-3  # grey values of 0..1; > 0
    loss.vgg_weight = 0.1  # perceptual loss; 0: none, and no file is needed
    loss.vgg_layers = ("relu3_3",)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
    loss.vgg_path = "weights/vgg16.safetensors"  # from `vrtspike convert`
    loss.vgg_dtype = "bfloat16"  # compute dtype of VGG
    return loss


def eval_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.max_clips = 0  # clips to score, evenly spread over the split; 0: all
    config.tile_size = 256  # pixels; frames larger than this are restored in tiles; 0: whole
    config.tile_overlap = 32  # pixels that tiles share
    config.strips = 4  # pictures blurred | restored | sharp to write at each validation; >= 0
    config.checkpoint = "best"  # which one --mode=eval scores: "best" (PSNR) or "latest"
    return config


def mesh_config() -> ml_collections.ConfigDict:
    mesh = ml_collections.ConfigDict()
    mesh.data = -1  # devices that share the batch; -1: all that the others leave
    mesh.fsdp = 1  # devices that share the parameters and the optimiser state (and the batch)
    mesh.spatial = 1  # devices that share the rows of each frame
    return mesh
