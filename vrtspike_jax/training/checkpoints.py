"""Saving and restoring the training state with Orbax."""

import dataclasses
import importlib.metadata
import logging
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import grain.python as grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vrtspike_jax import weights
from vrtspike_jax.data.config import add_later_fields
from vrtspike_jax.models.build import build_model
from vrtspike_jax.training import checkpoint_files as files
from vrtspike_jax.training.state import TrainState

_PACKAGES = ("vrtspike-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class CheckpointWriteError(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


class _DataState:
    """What Grain's checkpoint handler asks of an iterator, for a state that was taken earlier."""

    def __init__(self, state: bytes):
        self._state = state

    def get_state(self) -> bytes:
        return self._state


class _KeepBest(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint with the highest PSNR; Orbax's own BestN forgets metrics on restart."""

    def __init__(self, scores: dict[int, float]):
        self._scores = scores

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        scored = [c.step for c in checkpoints if c.step in self._scores]
        best = max(scored, key=lambda s: (self._scores[s], s), default=None)
        return [c.step == best for c in checkpoints]


class CheckpointStore:
    """The checkpoints of one workdir: asynchronous atomic saves; the latest and the best are kept.

    Args:
        directory: `<workdir>/checkpoints`; created if missing.
        keep_latest: how many of the newest to keep (at least 1), besides the best.
    """

    def __init__(self, directory: str | os.PathLike, keep_latest: int = 2):
        self.directory = Path(directory).absolute()
        self._scores = {
            step: psnr
            for step in files.find_steps(self.directory)
            if (psnr := files.psnr_of(self.directory / str(step))) is not None
        }
        self._saving_step = -1
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=True,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(keep_latest), _KeepBest(self._scores)]
                ),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._add_checksums),
            ),
        )

    def save(self, state: TrainState, data_state: bytes, meta: files.Meta) -> None:
        """Starts to save a step; a step that is already there is left as it is.

        Returns as soon as the arrays are copied to host memory. An error of the save before this
        one is raised here.

        Raises:
            CheckpointWriteError: the disk is full or cannot be written.
        """
        self.wait()
        if meta.step in files.find_steps(self.directory):
            return
        self._require_space(state)
        arrays = split_state(state)
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items["meta"] = ocp.args.JsonSave(meta.to_json())
        items["data"] = grain.PyGrainCheckpointSave(_DataState(data_state))
        self._saving_step = meta.step
        if meta.metrics is not None:
            self._scores[meta.step] = float(meta.metrics["psnr_rgb"])
        self._guard(
            lambda: self._manager.save(meta.step, args=ocp.args.Composite(**items), force=True)
        )

    def wait(self) -> None:
        """Blocks until the running save is committed.

        Raises:
            CheckpointWriteError: it failed.
        """
        self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        self._guard(self._manager.close)

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            free = shutil.disk_usage(self.directory).free if self.directory.exists() else 0
            kept = files.find_steps(self.directory)
            raise CheckpointWriteError(
                f"could not write checkpoint {self._saving_step} to {self.directory} "
                f"({free / 2**20:,.0f} MiB free): {_first_line(error)}. "
                f"Intact checkpoints: {', '.join(map(str, kept)) or 'none'}."
            ) from error

    def _require_space(self, state: TrainState) -> None:
        """Refuses to start a save that cannot fit, before anything is written."""
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if free < need:
            raise CheckpointWriteError(
                f"the disk of {self.directory} is full: {free / 2**20:,.0f} MiB free, a checkpoint "
                f"takes up to {need / 2**20:,.0f} MiB. Intact checkpoints: "
                f"{', '.join(map(str, files.find_steps(self.directory))) or 'none'}."
            )

    def _add_checksums(self) -> None:
        """Runs in Orbax's thread once all files are written, before the rename that commits."""
        final = self.directory / str(self._saving_step)
        for path in (final, *files.half_written(self.directory)):
            if path.is_dir() and path.name.split(".")[0] == final.name:
                files.write_checksums(path)


@dataclasses.dataclass
class Restored:
    """What a checkpoint gave back."""

    state: TrainState
    data_state: bytes
    meta: files.Meta


def split_state(state: TrainState) -> dict[str, Any]:
    """The state as the items of a checkpoint, so that inference can read parameters alone."""
    items = {"params": state.params, "opt": _without_params(state)}
    return items if state.packed_ema is None else items | {"ema": state.ema_params}


def _without_params(state: TrainState) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(state)} - {"packed", "packed_ema", "layout"}
    return {name: getattr(state, name) for name in names}


def check_workdir(
    checkpoints: Path, config: ml_collections.ConfigDict, params: Any
) -> list[tuple[int, str | None]]:
    """Looks at the checkpoints of a workdir without touching any.

    Args:
        checkpoints: `<workdir>/checkpoints`.
        config: the config that is about to be run.
        params: its model's parameters (or their shapes).

    Returns:
        (step, None or what is damaged), newest first.

    Raises:
        CheckpointMismatchError: one belongs to another model or optimiser.
        DamagedCheckpointError: there are some, and all are damaged.
    """
    found = []
    for step in reversed(files.find_steps(checkpoints)):
        path = checkpoints / str(step)
        try:
            meta = files.read_meta(path)
            check_model(path, meta, config, params)
            files.verify(path)
            found.append((step, None))
            return found  # older ones are not needed
        except files.DamagedCheckpointError as error:
            found.append((step, str(error)))
    if found:
        raise files.DamagedCheckpointError(
            f"{checkpoints}: every checkpoint is damaged, nothing was changed. "
            + "; ".join(f"{step}: {reason}" for step, reason in found)
            + ". Start anew in another --workdir, or delete this one."
        )
    return found


def check_model(
    path: Path, meta: files.Meta, config: ml_collections.ConfigDict, params: Any
) -> None:
    """Raises CheckpointMismatchError where a checkpoint is of another model or optimiser."""
    wanted = param_shapes(params)
    if meta.params != wanted:
        only = sorted(set(meta.params) ^ set(wanted))
        differing = only or [name for name in wanted if meta.params[name] != wanted[name]]
        name = differing[0]
        raise files.CheckpointMismatchError(
            f"{path} belongs to another model: {len(differing)} of its {len(meta.params)} "
            f"parameters differ from config.model's {len(wanted)}; the first, {name}, is "
            f"{meta.params.get(name, 'absent')} there and {wanted.get(name, 'absent')} here. "
            "Use another --workdir, or the config that it was started with. Nothing was changed."
        )
    optim = meta.config.get("optim")
    theirs = optim.get("name") if isinstance(optim, dict) else None
    if theirs != config.optim.name:
        raise files.CheckpointMismatchError(
            f"{path} was trained with config.optim.name={theirs!r}, not {config.optim.name!r}: "
            "their states cannot be exchanged. Nothing was changed."
        )


def restore(checkpoint: Path, template: TrainState) -> Restored:
    """Reads one checkpoint.

    Args:
        checkpoint: one that `check_workdir` found whole.
        template: a state, or its shapes with shardings; gives structure and placement. Where it
            has an average and the checkpoint has none, the average starts at the parameters.

    Raises:
        DamagedCheckpointError: it cannot be read.
    """
    meta = files.read_meta(checkpoint)
    params = template.layout.abstract(template.step.sharding)
    abstract = {"params": params, "opt": _without_params(template)}
    if template.packed_ema is not None and (checkpoint / "ema").is_dir():
        abstract["ema"] = params
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, abstract)
    try:
        with ocp.StandardCheckpointer() as reader:
            items = {name: reader.restore(checkpoint / name, t) for name, t in abstract.items()}
    except Exception as error:
        raise files.DamagedCheckpointError(f"{checkpoint}: {_first_line(error)}") from error
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template.packed)
    pack = jax.jit(template.layout.pack, out_shardings=shardings)
    packed, packed_ema = pack(items["params"]), None
    if template.packed_ema is not None:
        packed_ema = pack(items.get("ema", items["params"]))
    state = TrainState(packed=packed, packed_ema=packed_ema, layout=template.layout, **items["opt"])
    return Restored(state, _data_position(checkpoint / "data"), meta)


def _data_position(folder: Path) -> bytes:
    """This host's file; after a change of the number of hosts the first host's, the same place."""
    own = folder / f"process_{jax.process_index()}-of-{jax.process_count()}.json"
    first = sorted(folder.glob("process_0-of-*.json"))
    if not own.exists() and not first:
        raise files.DamagedCheckpointError(f"{folder}: no position of the data")
    return (own if own.exists() else first[0]).read_bytes()


def load_for_inference(
    path: str | os.PathLike, prefer: str = "best"
) -> tuple[nn.Module, Any, ml_collections.ConfigDict]:
    """The model of a checkpoint, ready to be applied.

    Args:
        path: a workdir, its `checkpoints` directory, one checkpoint, or a file of released weights.
        prefer: "best" or "latest", where `path` holds several.

    Returns:
        The module, its parameters (the moving average where one was kept) on the default device,
        and the whole config that it was trained with, with all of today's fields of `data`.

    Raises:
        ValueError: there is no checkpoint, or it is damaged; the message names the file.
    """
    model, params, config = _load(path, prefer)
    add_later_fields(config.data)
    return model, params, config


def _load(path: str | os.PathLike, prefer: str) -> tuple[nn.Module, Any, ml_collections.ConfigDict]:
    if weights.is_weights(path):
        return weights.load_weights(path)
    checkpoint = files.locate(path, prefer).absolute()
    files.verify(checkpoint)
    meta = files.read_meta(checkpoint)
    item = "ema" if (checkpoint / "ema").is_dir() else "params"
    model = build_model(meta.config.get("model"))
    try:
        with ocp.StandardCheckpointer() as reader:
            params = reader.restore(checkpoint / item, _abstract_params(meta))
    except Exception as error:
        raise files.DamagedCheckpointError(f"{checkpoint / item}: {_first_line(error)}") from error
    return model, params, ml_collections.ConfigDict(meta.config)


def _abstract_params(meta: files.Meta) -> dict[str, Any]:
    """Shapes of the parameters on the default device, as a tree."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree: dict[str, Any] = {}
    for name, shape in meta.params.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jax.ShapeDtypeStruct(tuple(shape), jnp.float32, sharding=sharding)
    return tree


def state_shapes(state: TrainState) -> dict[str, list[int]]:
    """`param_shapes` of a state's parameters."""
    return param_shapes(state.layout.abstract(state.step.sharding))


def param_shapes(params: Any) -> dict[str, list[int]]:
    """Parameter path, joined by "/", -> shape."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {
        "/".join(str(key.key) for key in path): [int(n) for n in np.shape(leaf)]
        for path, leaf in leaves
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            logging.getLogger(__name__).debug("no version of %s", package)
    return found


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
