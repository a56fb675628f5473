"""State dicts in files: `.pth` of PyTorch, `.safetensors` and `.npz`."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from vrtspike_jax.convert.npz import read_npz

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt")
READABLE = (*TORCH_SUFFIXES, ".safetensors", ".npz")
WRITABLE = (*TORCH_SUFFIXES, ".safetensors")


def read_state_dict(path: str | os.PathLike) -> Mapping[str, Any]:
    """Reads a state dict; nothing that a file contains is ever run.

    Args:
        path: `.safetensors` or `.npz`, or, where PyTorch is installed, `.pth`, `.pt` or `.ckpt`
            (read with `weights_only=True`).

    Returns:
        Arrays or tensors by name, in PyTorch's layout; a `.pth` may hold them inside a wrapper,
        which `from_torch` knows.

    Raises:
        ValueError: the file is missing, damaged or of another kind, or PyTorch is not installed.
    """
    path = Path(path)
    if path.suffix not in READABLE:
        raise ValueError(f"{path}: weights must be one of {', '.join(READABLE)}")
    if not path.is_file():
        raise ValueError(f"weights not found: looked for {path.absolute()}")
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return read_npz(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_torch(path: Path) -> Mapping[str, Any]:
    torch = import_torch(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{path} holds more than weights, and loading the rest could run its code: {reason}"
        ) from error
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, want a dict of tensors")
    return loaded


def import_torch(path: Path) -> Any:
    """PyTorch, or a ValueError that says how to get it."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path}: {path.suffix} files need PyTorch: pip install 'vrtspike-jax[torch]'"
        ) from error
    return torch


def write_state_dict(
    path: str | os.PathLike,
    state: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a state dict; its folder is made, and the file appears when it is complete.

    Args:
        path: `.safetensors`, or `.pth` (needs PyTorch), where the dict stands under `params`, as in
            the published files.
        state: Arrays by name.
        metadata: Further entries of a `.safetensors` file's head.

    Raises:
        ValueError: another suffix, or PyTorch is not installed.
    """
    path = Path(path)
    if path.suffix not in WRITABLE:
        raise ValueError(f"{path}: weights can be written to {', '.join(WRITABLE)}")
    torch = import_torch(path) if path.suffix in TORCH_SUFFIXES else None
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        if torch is None:
            # `save_file` would make a file that its owner alone can read.
            partial.write_bytes(save(arrays, {"format": "pt", **(metadata or {})}))
        else:
            tensors = {name: torch.tensor(value) for name, value in arrays.items()}
            torch.save({"params": tensors}, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
