"""Runs of the published PyTorch code, and the weights and inputs they were made with.

Arrays of the published models are in PyTorch's layout: clips and fused features (B, T, C, H, W),
stages and other features (B, C, T, H, W), flows (B, T - 1, 2, H, W). To keep the files small,
features are float16 and, like flows, a grid of their pixels. Weights are not stored: every
parameter is drawn from a generator seeded by its own name.
"""

import functools
import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
# XLA's CPU backend takes minutes to optimise what runs for seconds here.
QUICK = {"xla_backend_optimization_level": 0}


def drawn(name, shape):
    """The weights called `name` in every golden run."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("relative_position_bias_table"):
        return 0.5 * noise
    if len(shape) >= 2:
        gain = 1.0
        if "spynet" in name:
            gain = 0.6 if name.endswith("basic_module.8.weight") else 1.2
        if "conv_offset.6" in name:
            gain = 0.3
        return (gain * noise / np.sqrt(int(np.prod(shape[1:])))).astype(np.float32)
    if name.endswith("weight"):
        return 1 + 0.1 * noise
    return 0.02 * noise if "spynet" in name else 0.1 * noise


def weights(shapes):
    """A state dict, from names and shapes."""
    return {name: drawn(name, tuple(shape)) for name, shape in shapes.items()}


@functools.cache
def load(name):
    """(meta, arrays) of one file."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    return json.loads(str(arrays.pop("meta", "null"))), arrays


def channels_last(x, axis):
    return np.moveaxis(x, axis, -1)


def moving_texture(rng, frames, height, width):
    """A smooth random texture that moves by one row and two columns a frame, in 0..1."""
    x = rng.integers(0, 256, (height // 4 + 16, width // 4 + 16, 3))
    x = np.repeat(np.repeat(x, 4, 0), 4, 1).astype(np.int64)
    for axis in (0, 1):
        x = sum(np.roll(x, k, axis) for k in range(-2, 3)) // 5
    x = np.clip(x + rng.integers(-20, 21, x.shape), 0, 255)
    clip = [x[8 + t : 8 + t + height, 8 + 2 * t : 8 + 2 * t + width] for t in range(frames)]
    return np.stack(clip).astype(np.float32) / np.float32(255)


def differences(ours, theirs):
    """Largest difference, and its 99.9th percentile."""
    assert ours.shape == theirs.shape
    difference = np.abs(np.asarray(ours, np.float64) - theirs)
    return difference.max(), np.percentile(difference, 99.9)
