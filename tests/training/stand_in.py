"""A model small enough to train in a test, and a config for it. Also a program: see `main`."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs import baseline
from vrtspike_jax.models import build


class Tiny(nn.Module):
    """Two convolutions with a spike branch, a part named like the flow network, and dropout."""

    spike_bins: int = 4
    features: int = 8
    rate: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames, voxels, train=False):
        b, t, h, w, _ = frames.shape
        voxels = jax.image.resize(voxels, (b, t, h, w, self.spike_bins), "linear")
        x = jnp.concatenate([frames, voxels], -1).reshape(b * t, h, w, -1)
        x = nn.relu(nn.Conv(self.features, (3, 3), name="first")(x))
        x = x + nn.Conv(self.features, (3, 3), name="spynet")(x)
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        x = nn.Conv(3, (3, 3), name="last", kernel_init=nn.initializers.normal(0.01))(x)
        return frames + x.reshape(frames.shape)


def register():
    """Makes `config.model.name = "tiny"` known to `build_model`."""
    build.MODELS["tiny"] = lambda fields: build.construct(Tiny, fields, "config.model")


def tiny_config(num_steps=20):
    config = baseline.get_config()
    config.unlock()
    config.num_steps = num_steps
    config.log_every_steps = 1
    config.checkpoint_every_steps = 5
    config.eval_every_steps = 10
    config.tensorboard = False
    del config.model
    config.model = {"name": "tiny", "spike_bins": 4, "features": 8, "dtype": "float32"}
    config.data.source = "scenes"
    config.data.clip_length = 2
    config.data.crop_size = 16
    config.data.batch_size = 2
    config.data.steps = 12
    config.data.voxel.bins = 4
    config.data.num_workers = 0
    config.data.scenes.height = config.data.scenes.width = 32
    config.data.scenes.train_clips = 16
    config.data.scenes.eval_clips = 2
    config.optim.warmup_steps = 4
    config.optim.learning_rate = 1e-3
    config.optim.accumulation_steps = 2
    config.optim.freeze_flow_steps = 3
    config.loss.vgg_weight = 0.0
    config.eval.tile_size = 0
    config.eval.strips = 1
    config.init.spynet = ""
    return config.lock()


def main(argv):
    """`python stand_in.py WORKDIR [field=value ...]`: trains as `vrtspike_jax.main` would."""
    from absl import app, flags

    from vrtspike_jax import main as program

    register()
    config = tiny_config()
    for override in argv[2:]:
        name, value = override.split("=")
        config.update_from_flattened_dict({name: type(_get(config, name))(_number(value))})
    flags.FLAGS.set_default("workdir", argv[1])
    app.run(lambda _: program.dispatch(config, argv[1], "train"), argv[:1])


def _get(config, dotted):
    for part in dotted.split("."):
        config = config[part]
    return config


def _number(text):
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main(sys.argv)
