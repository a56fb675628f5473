"""The perceptual loss: L1 between features of a fixed VGG16.

The weights are torchvision's `IMAGENET1K_V1` (`vgg16-397923af.pth`), which expect images in 0..1
less the ImageNet mean, over the ImageNet standard deviation. The other file that torchvision ships,
`IMAGENET1K_FEATURES`, expects a standard deviation of 1/255; feeding it the normalisation below
makes its inputs 57 times too small, which is why the two belong together here.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vrtspike_jax.convert.npz import read_npz
from vrtspike_jax.ops import conv

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# VGG16's `features`: index of each convolution -> (input channels, output channels). A ReLU follows
# at the next index; a 2x2 max pooling follows the ReLUs of `_POOL_AFTER`.
_CONVOLUTIONS = {
    0: (3, 64),
    2: (64, 64),
    5: (64, 128),
    7: (128, 128),
    10: (128, 256),
    12: (256, 256),
    14: (256, 256),
    17: (256, 512),
    19: (512, 512),
    21: (512, 512),
    24: (512, 512),
    26: (512, 512),
    28: (512, 512),
}
_POOL_AFTER = (2, 7, 14, 21)
# Name of a tapped layer -> index of the convolution whose ReLU it is.
LAYERS = {"relu1_2": 2, "relu2_2": 7, "relu3_3": 14, "relu4_3": 21, "relu5_3": 28}

VggParams = Mapping[str, Mapping[str, jax.Array]]


def perceptual_loss(
    params: VggParams,
    restored: jax.Array,
    sharp: jax.Array,
    layers: Sequence[str] = ("relu3_3",),
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """Mean over `layers` of the mean absolute difference of VGG16 features.

    Args:
        params: from `load_vgg16`; fixed, no gradient is taken with respect to them.
        restored: (..., H, W, 3), 0..1; the leading axes (batch, time) are merged.
        sharp: the same shape.
        layers: names out of `LAYERS`.
        dtype: compute dtype of the convolutions; the difference is taken in float32.

    Returns:
        A float32 scalar.
    """
    predicted = vgg16_features(params, restored, layers, dtype)
    wanted = vgg16_features(params, jax.lax.stop_gradient(sharp), layers, dtype)
    distances = [
        jnp.mean(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)))
        for a, b in zip(predicted, wanted, strict=True)
    ]
    return sum(distances) / len(distances)


def vgg16_features(
    params: VggParams, images: jax.Array, layers: Sequence[str], dtype: jnp.dtype = jnp.float32
) -> list[jax.Array]:
    """The features after the named ReLUs, in the order of `layers`.

    Args:
        params: from `load_vgg16`.
        images: (..., H, W, 3), 0..1. H and W at least 1, 2, 4, 8, 16 for relu1_2 to relu5_3.
        layers: names out of `LAYERS`.
        dtype: compute dtype.

    Returns:
        A list of (N, H/s, W/s, C) with s = 1, 2, 4, 8, 16 and C = 64, 128, 256, 512, 512.
    """
    taps = [_tap(name) for name in layers]
    mean = jnp.asarray(IMAGENET_MEAN, jnp.float32)
    std = jnp.asarray(IMAGENET_STD, jnp.float32)
    x = (images.reshape(-1, *images.shape[-3:]).astype(jnp.float32) - mean) / std
    x = x.astype(dtype)
    features = {}
    for index in _CONVOLUTIONS:
        if index > max(taps):
            break
        layer = params[f"features.{index}"]
        x = conv(x, layer["kernel"].astype(dtype), "xla")
        x = jax.nn.relu(x + layer["bias"].astype(dtype))
        features[index] = x
        if index in _POOL_AFTER:
            x = jax.lax.reduce_window(
                x, np.array(-np.inf, dtype), jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )
    return [features[tap] for tap in taps]


def load_vgg16(path: str | os.PathLike, layers: Sequence[str] = ("relu3_3",)) -> VggParams:
    """Reads VGG16 as far as `layers` need it.

    Args:
        path: a `.safetensors` or `.npz` file with torchvision's names: `features.0.weight`
            (O, I, 3, 3), `features.0.bias` (O,), ... Other entries are left unread.
        layers: names out of `LAYERS`.

    Returns:
        `{"features.0": {"kernel": (3, 3, I, O), "bias": (O,)}, ...}`, float32.

    Raises:
        ValueError: the file is missing, of another kind, damaged, or holds other shapes.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"VGG16 weights not found: looked for {path.absolute()}. The perceptual loss needs "
            "torchvision's vgg16-397923af.pth converted to .safetensors: run "
            f"`vrtspike convert vgg16-397923af.pth {path}` where PyTorch is installed, point "
            "config.loss.vgg_path at the result, or set config.loss.vgg_weight=0 to train without."
        )
    arrays = _read(path)
    last = max(_tap(name) for name in layers)
    params = {}
    for index, (inputs, outputs) in _CONVOLUTIONS.items():
        if index > last:
            break
        kernel = _entry(arrays, path, f"features.{index}.weight", (outputs, inputs, 3, 3))
        bias = _entry(arrays, path, f"features.{index}.bias", (outputs,))
        params[f"features.{index}"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
    return params


def _tap(name: str) -> int:
    if name not in LAYERS:
        raise ValueError(f"unknown VGG layer {name!r}: expected one of {', '.join(LAYERS)}")
    return LAYERS[name]


def _read(path: Path) -> Mapping[str, np.ndarray]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            return read_npz(path, lambda name: "features." in name)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is no readable VGG16 file: {error}") from error
    raise ValueError(f"{path}: VGG16 weights must be .safetensors or .npz, found {path.suffix!r}")


def _entry(
    arrays: Mapping[str, np.ndarray], path: Path, name: str, shape: tuple[int, ...]
) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"{path}: no entry {name!r}; wanted torchvision's VGG16 names")
    array = np.asarray(arrays[name])
    if array.shape != shape:
        raise ValueError(f"{path}: {name} has shape {array.shape}, wanted {shape}")
    return array.astype(np.float32)
