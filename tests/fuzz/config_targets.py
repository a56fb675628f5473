"""Configs: from a command line, from a checkpoint, and the models that they describe."""

import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
from damage import SCALARS, TEXTS, VALUES, changed
from harness import Target
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs import baseline
from vrtspike_jax.cli.configs import load_config
from vrtspike_jax.models.build import build_model
from vrtspike_jax.training.config import check_config, to_plain

_CONFIG = to_plain(baseline.get_config())


def targets(folder: Path) -> list[Target]:
    """All of them; `folder` stays empty."""
    del folder
    return [_whole(), _overrides(), _model()]


def _whole() -> Target:
    """A config out of a checkpoint: any JSON."""

    def run(fields):
        # The file's reader makes sure that it is a mapping.
        config = ml_collections.ConfigDict(fields if isinstance(fields, dict) else {})
        check_config(config)
        build_model(config.model)
        to_plain(config)

    return Target("configs", changed([_CONFIG]), run, (ValueError,))


def _leaves(fields, name=""):
    for key, value in fields.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{name}{key}.")
        else:
            yield f"{name}{key}"


def _overrides() -> Target:
    path = str(Path(__file__).resolve().parents[2] / "configs" / "baseline.py")
    keys = st.one_of(st.sampled_from(sorted(_leaves(_CONFIG))), TEXTS)
    texts = st.builds("{}={}".format, keys, st.one_of(TEXTS, VALUES.map(repr)))

    def run(overrides):
        check_config(load_config(path, overrides))

    inputs = st.lists(texts, min_size=1, max_size=3)
    return Target("config overrides", inputs, run, (ValueError,), weight=0.2)


_SMALL = {
    "name": "vrt_spike",
    "dtype": "float32",
    "remat": "none",
    "vrt": {
        "window_size": [2, 8, 8],
        "depths": [1] * 8,
        "indep_reconsts": [],
        "embed_dims": [8] * 8,
        "num_heads": [2] * 8,
        "mul_attn_ratio": 0.75,
        "pa_frames": 2,
        "deformable_groups": 4,
    },
    "spike_bins": 4,
    "channels_per_scale": [8] * 4,
    "tsa_heads": 2,
    "fuse_heads": 2,
}


def _model() -> Target:
    """A model that is accepted has parameters, and what is wrong with it is said."""
    frames = jax.ShapeDtypeStruct((1, 3, 64, 64, 3), jnp.float32)
    voxels = jax.ShapeDtypeStruct((1, 3, 32, 32, 4), jnp.float32)

    def run(fields):
        model = build_model(ml_collections.ConfigDict(fields))
        inputs = (frames, voxels) if hasattr(model, "spike_bins") else (frames,)
        jax.eval_shape(model.init, jax.random.key(0), *inputs)

    values = st.one_of(
        st.sampled_from([0, 1, 3, 5, -1, 2**20, 0.5, 1.5, math.nan, "8", None, True]),
        st.lists(st.integers(-1, 9), max_size=9),
        SCALARS,
    )
    keys = sorted(k for k in _leaves(_SMALL))

    def change(edits):
        fields = {**_SMALL, "vrt": dict(_SMALL["vrt"])}
        for key, value in edits:
            owner, _, name = key.rpartition(".")
            (fields["vrt"] if owner else fields)[name] = value
        return fields

    inputs = st.lists(st.tuples(st.sampled_from(keys), values), max_size=2).map(change)
    return Target("models", inputs, run, (ValueError,), weight=0.005, limited=False, seconds=120)
