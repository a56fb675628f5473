"""Sets a run up: everything is checked before anything in the workdir is touched."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from vrtspike_jax.data.pipeline import train_iterator
from vrtspike_jax.evaluation import write_json
from vrtspike_jax.models.build import build_model
from vrtspike_jax.training import checkpoint_files as files
from vrtspike_jax.training import checkpoints
from vrtspike_jax.training.config import changes, check_config, to_plain
from vrtspike_jax.training.feed import Feed
from vrtspike_jax.training.initialise import (
    abstract_params,
    abstract_state,
    fixed_inputs,
    initial_state,
)
from vrtspike_jax.training.metrics_log import MetricsLog
from vrtspike_jax.training.optimizer import gradient_transformation
from vrtspike_jax.training.scoring import Scorer
from vrtspike_jax.training.sharding import make_mesh
from vrtspike_jax.training.state import TrainState
from vrtspike_jax.training.step import Recipe, build_train_step


@dataclasses.dataclass
class Run:
    """A run that is ready to take its next step.

    Attributes:
        config: the whole config.
        workdir: where everything is written.
        console: where to print; silent on all hosts but the first.
        model: the network.
        mesh: the devices.
        state: the training state.
        fixed: constants of the loss.
        feed: batches, at the right position.
        train_step: (state, batch, fixed) -> (state, metrics).
        scorer: scores held-out clips.
        store: checkpoints.
        log: metrics.jsonl and TensorBoard.
        best: step and PSNR of the best score so far, or None.
        last_eval_step: the last step that was scored; 0 if none.
    """

    config: ml_collections.ConfigDict
    workdir: Path
    console: Console
    model: nn.Module
    mesh: Mesh
    state: TrainState
    fixed: dict[str, Any]
    feed: Feed
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    scorer: Scorer
    store: checkpoints.CheckpointStore
    log: MetricsLog
    best: dict[str, float] | None = None
    last_eval_step: int = 0

    def save(self, step: int, metrics: dict[str, float] | None) -> None:
        """Starts to save the state after `step`, with its scores if it has any."""
        meta = files.Meta(
            step=step,
            config=to_plain(self.config),
            versions=checkpoints.versions(),
            metrics=metrics,
            best=self.best,
            last_eval_step=self.last_eval_step,
            params=checkpoints.state_shapes(self.state),
        )
        self.store.save(self.state, self.feed.state(), meta)

    def close(self) -> None:
        """Ends workers and files; waits for a running save."""
        try:
            self.store.close()
        finally:
            self.feed.close()
            self.log.close()


def prepare(config: ml_collections.ConfigDict, workdir: Path, console: Console) -> Run:
    """Checks the config, the files and the workdir; restores the latest whole checkpoint.

    Raises:
        ValueError: something is wrong; nothing in the workdir was changed.
    """
    check_config(config)
    model = build_model(config.model)
    mesh = make_mesh(config.mesh, config.data.batch_size)
    directory = workdir.absolute() / "checkpoints"
    found = checkpoints.check_workdir(directory, config, abstract_params(model, config))
    feed = _open_feed(config, mesh)
    fixed = fixed_inputs(config, mesh, feed.source)
    scorer = Scorer(model, config, mesh, config.eval.max_clips)
    if found:
        template = abstract_state(model, config, mesh)
        restored = _restore(directory, found, template, console)
        state = restored.state
    else:
        restored = None
        state = initial_state(model, config, mesh)

    step = int(state.step)
    writes = jax.process_index() == 0
    if writes:
        workdir.mkdir(parents=True, exist_ok=True)
        _clear_half_written(directory, console)
        write_json(to_plain(config), workdir / "config.json")
    multihost_utils.sync_global_devices("workdir is ready")
    tx = gradient_transformation(config.optim)
    run = Run(
        config=config,
        workdir=workdir,
        console=console,
        model=model,
        mesh=mesh,
        state=state,
        fixed=fixed,
        feed=feed,
        train_step=build_train_step(model, tx, Recipe.from_config(config), mesh, state),
        scorer=scorer,
        store=checkpoints.CheckpointStore(directory, config.keep_checkpoints),
        log=MetricsLog(workdir if writes else None, step, config.tensorboard),
    )
    if restored is not None:
        _resume(run, restored)
    return run


def _open_feed(config: ml_collections.ConfigDict, mesh: Mesh) -> Feed:
    hosts = jax.process_count()
    if config.data.batch_size % hosts:
        raise ValueError(
            f"config.data.batch_size is {config.data.batch_size}: the {hosts} hosts must divide it"
        )
    iterator = train_iterator(
        config.data, config.seed, shard_index=jax.process_index(), shard_count=hosts
    )
    return Feed(iterator, config.optim.accumulation_steps, mesh)


def _restore(
    directory: Path, found: list[tuple[int, str | None]], template: TrainState, console: Console
) -> checkpoints.Restored:
    """The newest checkpoint that can be read; those that cannot are moved to `damaged/`."""
    for step, damage in found:
        if damage is None:
            break
        _set_aside(directory / str(step), damage, console)
    for step in reversed(files.find_steps(directory)):
        try:
            return checkpoints.restore(directory / str(step), template)
        except files.DamagedCheckpointError as error:
            _set_aside(directory / str(step), str(error), console)
    raise files.DamagedCheckpointError(
        f"{directory}: no checkpoint could be read; they are in {directory.parent / 'damaged'}"
    )


def _set_aside(checkpoint: Path, damage: str, console: Console) -> None:
    where = checkpoint
    if jax.process_index() == 0:
        where = files.set_aside(checkpoint)
    multihost_utils.sync_global_devices(f"set aside {checkpoint.name}")
    text = f"checkpoint {checkpoint.name} is damaged and was moved to {where}: {damage}"
    console.print(text, style="bold red", highlight=False, markup=False, soft_wrap=True)


def _clear_half_written(directory: Path, console: Console) -> None:
    for path in files.half_written(directory):
        files.remove(path)
        text = f"removed {path}: the save was interrupted before it was complete"
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _resume(run: Run, restored: checkpoints.Restored) -> None:
    run.feed.set_state(restored.data_state)
    meta, step = restored.meta, int(run.state.step)
    run.best, run.last_eval_step = meta.best, meta.last_eval_step
    lines = [f"resuming at step {step} of {run.config.num_steps}"]
    lines += [f"  changed: {line}" for line in changes(meta.config, to_plain(run.config))]
    for line in lines:
        run.console.print(line, highlight=False, markup=False, soft_wrap=True)
