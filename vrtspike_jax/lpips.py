"""LPIPS, the learned perceptual distance (Zhang et al., CVPR 2018), version 0.1 with VGG16.

    d(x, y) = sum over layers l of  mean over pixels of  sum over channels c of
              w_lc (f_lc(x) / |f_l(x)| - f_lc(y) / |f_l(y)|)^2

Images go in as [0, 1]. The published network takes [-1, 1] and then subtracts (-.030, -.088, -.188)
and divides by (.458, .448, .450), which is ImageNet's normalisation of [0, 1]: VGG16's own.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vrtspike_jax.convert.npz import read_npz
from vrtspike_jax.losses.vgg import load_vgg16, vgg16_features

LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
_CHANNELS = (64, 128, 256, 512, 512)


class Lpips:
    """Distance of two images of one size, each [H, W, 3] in [0, 1]; 0 for equal ones.

    Args:
      vgg_path: torchvision's VGG16 weights, see `vrtspike_jax.losses.vgg.load_vgg16`.
      linear_path: `.safetensors` or `.npz` with the published layer weights under their names,
        `lin0.model.1.weight` (1, 64, 1, 1) to `lin4.model.1.weight`.

    Raises:
      ValueError: a file is missing, unreadable, or holds other shapes.
    """

    def __init__(self, vgg_path: str | os.PathLike, linear_path: str | os.PathLike):
        self._vgg = jax.device_put(load_vgg16(vgg_path, LAYERS))
        self._weights = jax.device_put(_load_linear(Path(linear_path)))

    def __call__(self, image: np.ndarray, reference: np.ndarray) -> float:
        """The distance; both images are compiled for once per size."""
        images = np.stack([image, reference]).astype(np.float32)
        return float(_distance(self._vgg, self._weights, images))


@jax.jit
def _distance(vgg, weights: list[jax.Array], images: jax.Array) -> jax.Array:
    total = jnp.float32(0)
    for feature, weight in zip(vgg16_features(vgg, images, LAYERS), weights, strict=True):
        length = jnp.sqrt(jnp.sum(jnp.square(feature), -1, keepdims=True))
        unit = feature / (length + 1e-10)
        total += jnp.mean(jnp.sum(weight * jnp.square(unit[0] - unit[1]), -1))
    return total


def _load_linear(path: Path) -> list[np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file of LPIPS weights")
    try:
        arrays = load_file(path) if path.suffix == ".safetensors" else read_npz(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable LPIPS weights: {error}") from None
    found = []
    for index, channels in enumerate(_CHANNELS):
        name = f"lin{index}.model.1.weight"
        array = arrays.get(name)
        if array is None or array.size != channels:
            shape = "nothing" if array is None else str(array.shape)
            raise ValueError(f"{path}: found {shape} as {name}, wanted (1, {channels}, 1, 1)")
        found.append(np.asarray(array, np.float32).reshape(channels))
    return found
