"""Released weights: a trained model in one file, with the config that describes it.

The files beside this one are ready to restore with; `small.md` is the model card of the default,
and `LICENSE` says what may be done with them. A file is safetensors: parameters by their path
("vrt/stage1/..."), matrices in half precision, and in its metadata the whole config as JSON.
"""

import json
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import ml_collections
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vrtspike_jax.models.build import build_model

SMALL = Path(__file__).with_name("small.safetensors")
SUFFIX = ".safetensors"
FORMAT = "vrtspike"


def find(path: str | os.PathLike) -> Path:
    """The shipped model's file where `path` is its name, "small", and nothing here is called so."""
    return SMALL if str(path) == SMALL.stem and not Path(path).exists() else Path(path)


def is_weights(path: str | os.PathLike) -> bool:
    """Whether a path names a file of weights rather than a checkpoint, which is a folder."""
    return Path(path).suffix == SUFFIX and not Path(path).is_dir()


def is_released(path: str | os.PathLike) -> bool:
    """Whether a file is what `save_weights` writes, and not a converted state dict."""
    try:
        return read_about(path).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def read_about(path: str | os.PathLike) -> dict[str, str]:
    """The metadata of a safetensors file: of weights the config, the steps and what else they say.

    Raises:
      SafetensorError, OSError: no such file, or no safetensors.
    """
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def save_weights(
    path: str | os.PathLike, params: Any, config: ml_collections.ConfigDict, **about: str
) -> None:
    """Writes parameters and their config to one file.

    Args:
      path: of the file, ending in .safetensors.
      params: the model's parameters, a tree of dicts.
      config: the whole config.
      **about: further lines of the metadata, such as steps or where the model comes from.

    Raises:
      ValueError: another ending.
    """
    if not is_weights(path):
        raise ValueError(f"{path}: wanted a file that ends in {SUFFIX}")
    arrays = {}
    for name, value in _flat(params).items():
        value = np.asarray(value)
        # Half the bytes; rounding matrices changes a restored frame by far less than one level.
        arrays[name] = value.astype(np.float16 if value.ndim > 1 else np.float32)
    written = json.dumps(config.to_dict())
    save_file(arrays, path, {"format": FORMAT, "config": written} | about)


def load_weights(path: str | os.PathLike) -> tuple[nn.Module, Any, ml_collections.ConfigDict]:
    """Reads what `save_weights` wrote.

    Returns:
      The module, its parameters in float32 (NumPy arrays), and the whole config.

    Raises:
      ValueError: no such file, or it is damaged or of another format; the message names it.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file of weights")
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            names = file.keys()
            arrays = {name: file.get_tensor(name).astype(np.float32) for name in names}
    except (SafetensorError, OSError, TypeError) as error:
        raise ValueError(f"{path}: found damaged weights: {error}") from None
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path}: found safetensors without a config, wanted weights that this package "
            "released (published ones become a checkpoint with `vrtspike convert`)"
        )
    try:
        written = json.loads(about.get("config", ""))
        if not isinstance(written, dict):
            raise ValueError(f"{written!r:.100} is no config")
        config = ml_collections.ConfigDict(written)
        return build_model(config["model"]), _nested(arrays), config
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: found a damaged config or parameters: {error}") from None


def _flat(tree: Any, above: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {above: tree}
    found = {}
    for name, value in tree.items():
        found |= _flat(value, f"{above}/{name}" if above else name)
    return found


def _nested(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in arrays.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r}, and a parameter above it")
        node[leaf] = value
    return tree
