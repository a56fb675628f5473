"""Between files of PyTorch weights and this package's checkpoints."""

import dataclasses
import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from vrtspike_jax.convert import infer
from vrtspike_jax.convert.files import (
    TORCH_SUFFIXES,
    WRITABLE,
    import_torch,
    read_state_dict,
    write_state_dict,
)
from vrtspike_jax.convert.weights import Params, from_torch, to_torch, unwrap
from vrtspike_jax.data.config import default_data_config
from vrtspike_jax.models.build import build_model
from vrtspike_jax.models.spynet import SpyNet
from vrtspike_jax.training import checkpoint_files
from vrtspike_jax.training.checkpoints import load_for_inference, param_shapes, versions

# Heads of the SHA-256 sums of torchvision's two files of VGG16 weights.
VGG16_CLASSIFIER = "397923af"
VGG16_FEATURES = "88682ab5"
VGG16_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        kind: "vrt", "vrt_spike", "spynet" or "vgg16".
        destination: What was written.
        parameters: How many numbers it holds.
        model: The model's settings, as `config.model` has them; empty for SpyNet and VGG16.
    """

    kind: str
    destination: Path
    parameters: int
    model: Mapping[str, Any]


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    fields: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Converts weights from PyTorch to a checkpoint, back, or between two kinds of files.

    What `source` holds, and the settings of its model, follow from names and shapes.

    | source | destination |
    | --- | --- |
    | `.pth`, `.safetensors` or `.npz` of VRT, with or without spikes | a folder: a checkpoint that
      restores at once, and that `config.init.params` takes |
    | a checkpoint (its folder, or a workdir) | `.safetensors` or `.pth`, with the published names
      and buffers; the moving average where there is one |
    | any file of SpyNet | `.safetensors` or `.pth`, for `config.init.spynet` |
    | torchvision's `vgg16-397923af.pth` | `.safetensors`, for `config.loss.vgg_path` |

    `.pth` needs PyTorch, nothing else does.

    Args:
        source: What to read.
        destination: What to write; a name without a suffix is a folder. Missing folders above it
            are made.
        fields: Settings that names and shapes do not show, or that are to differ, such as
            `{"tsa_heads": 8, "vrt.qk_scale": 0.2, "dtype": "bfloat16"}`.
        overwrite: Whether what exists at `destination` is replaced.

    Raises:
        ValueError: the source is missing, damaged or not of these kinds; its weights do not fit
            (with every missing, unexpected and mis-shaped name); or the destination cannot be
            written as asked. Nothing is written then.
    """
    source, destination = Path(source), Path(destination)
    _check_destination(source, destination, overwrite)
    if source.is_dir():
        return _from_checkpoint(source, destination, fields)
    raw = read_state_dict(source)
    try:
        state = unwrap(raw, buffers=True)
        kind = infer.kind_of(state)
        if kind in (infer.VGG16, infer.SPYNET) and not _is_file(destination):
            raise ValueError(f"a {kind} becomes a file, not a checkpoint: name it .safetensors")
        if kind == infer.VGG16:
            return _convert_vgg16(source, state, destination)
        if kind == infer.SPYNET:
            params = from_torch(state, SpyNet())
            return _write_state(kind, destination, to_torch(params, SpyNet()), {})
        config = _with_fields(infer.model_fields(state), fields)
        model = build_model(config)
        params = from_torch(state, model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    settings = config.to_dict()
    if _is_file(destination):
        return _write_state(kind, destination, to_torch(params, model, buffers=True), settings)
    write_checkpoint(destination, params, config)
    return Conversion(kind, destination, _size(unwrap(state)), settings)


def _is_file(destination: Path) -> bool:
    return destination.suffix in WRITABLE


def _check_destination(source: Path, destination: Path, overwrite: bool) -> None:
    suffix = destination.suffix
    if suffix and suffix not in WRITABLE and not suffix[1:].isdigit():
        raise ValueError(
            f"{destination}: found suffix {suffix!r}, wanted {', '.join(WRITABLE)}, or none for a "
            "checkpoint"
        )
    if destination.exists() and not overwrite:
        raise ValueError(f"{destination} exists; choose another name, or allow it to be replaced")
    if source.is_dir() and not _is_file(destination):
        raise ValueError(f"{source} is a checkpoint: name the destination .safetensors or .pth")
    for folder in destination.absolute().parents:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{destination}: {folder} is a file, wanted a folder")
    if suffix in TORCH_SUFFIXES:
        import_torch(destination)


def _with_fields(
    model: Mapping[str, Any], fields: Mapping[str, Any] | None
) -> ml_collections.ConfigDict:
    """Settings of a model with dotted `fields` set; `build_model` refuses unknown ones."""
    config = ml_collections.ConfigDict({"dtype": "float32", "remat": "none", **model})
    for name, value in (fields or {}).items():
        section, _, field = name.rpartition(".")
        if section not in ("", "vrt"):
            raise ValueError(f"field {name!r}: wanted one of config.model, or vrt.<field>")
        with config.ignore_type():
            (config.vrt if section else config)[field] = value
    return config


def _from_checkpoint(
    source: Path, destination: Path, fields: Mapping[str, Any] | None
) -> Conversion:
    if fields:
        raise ValueError(f"{source} is a checkpoint, which says its settings: wanted no fields")
    model, params, config = load_for_inference(source)
    settings = config.model.to_dict()
    state = to_torch(params, model, buffers=True)
    return _write_state(settings["name"], destination, state, settings)


def _write_state(
    kind: str, destination: Path, state: Mapping[str, np.ndarray], model: Mapping[str, Any]
) -> Conversion:
    write_state_dict(destination, state)
    return Conversion(kind, destination, _size(unwrap(state)), model)


def _size(state: Mapping[str, np.ndarray]) -> int:
    return sum(math.prod(np.shape(value)) for value in state.values())


def _convert_vgg16(source: Path, state: Mapping[str, np.ndarray], destination: Path) -> Conversion:
    """Keeps the convolutions of the weights that ImageNet's mean and deviation belong to."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[: len(VGG16_FEATURES)]
    classifier = [state[n] for n in state if n.startswith("classifier.")]
    # torchvision fills the classifier of the other file with NaN.
    if digest == VGG16_FEATURES or any(np.isnan(value).any() for value in classifier):
        raise ValueError(
            "torchvision's IMAGENET1K_FEATURES, which expect inputs over a deviation of 1/255; the "
            f"perceptual loss needs IMAGENET1K_V1, vgg16-{VGG16_CLASSIFIER}.pth"
        )
    names = [f"features.{i}.{part}" for i in VGG16_LAYERS for part in ("weight", "bias")]
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"VGG16 without {', '.join(missing)}")
    metadata = {"weights": "IMAGENET1K_V1" if digest == VGG16_CLASSIFIER else "not known"}
    kept = {name: state[name] for name in names}
    write_state_dict(destination, kept, metadata)
    return Conversion(infer.VGG16, destination, _size(kept), {})


def write_checkpoint(
    destination: str | os.PathLike, params: Params, model: ml_collections.ConfigDict
) -> None:
    """Writes a checkpoint of step 0 that `load_for_inference` opens; it appears when complete.

    Args:
        destination: Its folder; what stands there is replaced.
        params: Parameters of the model.
        model: Its settings, as `config.model`.
    """
    destination = Path(destination).absolute()
    data = default_data_config()
    backbone = model.get("vrt", {})
    data.clip_length = int(backbone.window_size[0])
    if not backbone.get("pa_frames", 2):
        data.clip_length = int(backbone.img_size[0])
    data.voxel.bins = int(model.get("spike_bins", data.voxel.bins))
    config = ml_collections.ConfigDict({"model": model, "data": data})
    meta = checkpoint_files.Meta(
        step=0,
        config=config.to_dict(),
        versions=versions(),
        metrics=None,
        best=None,
        last_eval_step=0,
        params=param_shapes(params),
    )
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with ocp.StandardCheckpointer() as writer:
            writer.save(partial / "params", params)
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
            writer.save(partial / "meta", args=ocp.args.JsonSave(meta.to_json()))
        checkpoint_files.write_checksums(partial)
        _replace(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(new: Path, old: Path) -> None:
    if old.is_dir():
        shutil.rmtree(old)
    new.rename(old)
