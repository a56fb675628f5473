"""Small models whose output depends on all of their parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from vrtspike_jax.models import VRT, VRTWithSpike

BINS = 3
CHANNELS = (8, 16, 8, 16)


def backbone(**fields):
    settings = {
        "upscale": 1,
        "window_size": (2, 4, 4),
        "depths": (1,) * 8,
        "indep_reconsts": (),
        "embed_dims": (*CHANNELS, 8, 16, 8, 16),
        "num_heads": (2,) * 8,
        "mul_attn_ratio": 1.0,
        "deformable_groups": 2,
    }
    return VRT(**settings | fields)


def with_spikes(vrt, **fields):
    settings = {"spike_bins": BINS, "channels_per_scale": CHANNELS, "tsa_heads": 2, "fuse_heads": 2}
    return VRTWithSpike(vrt, **settings | fields)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def drawn_params(module, *inputs, deviation=1.0, **options):
    """Parameters without zeros, of `deviation` over the root of their fan-in.

    Published initial values make the last layers zero, behind which nothing would be seen.
    """

    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options)["params"])
    rng = np.random.Generator(np.random.PCG64(0))

    def draw(path, leaf):
        name = str(path[-1].key)
        noise = rng.standard_normal(leaf.shape, dtype=np.float32)
        if name == "scale":
            return jnp.asarray(1 + 0.1 * noise)
        if name.endswith("bias"):
            return jnp.asarray(0.02 * noise)
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(deviation * noise / np.sqrt(fan_in))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def quickly(function, *args):
    """Compiles without optimisation, as tests compile for longer than they run, and calls."""
    lowered = jax.jit(function).lower(*args)
    return lowered.compile({"xla_backend_optimization_level": 0})(*args)
