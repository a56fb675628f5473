"""Scoring a model on the mesh that it is trained on; shared by training and `--mode=eval`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from vrtspike_jax import compiler
from vrtspike_jax.data.pipeline import eval_clips
from vrtspike_jax.evaluation import Evaluation, Restore, evaluate
from vrtspike_jax.restoration.inference import make_restore_step
from vrtspike_jax.restoration.tiling import plan_grid, restore_tiled
from vrtspike_jax.training.sharding import batch_sharding, replicated


class Scorer:
    """Holds the compiled restoration of one model, so that each validation reuses it.

    Every host restores every clip together with the others and computes the same scores, so that
    what depends on them (the best checkpoint) needs no further agreement.

    Args:
        model: from `build_model`.
        config: the whole config; `data` and `eval` are read.
        mesh: where the parameters live.
        max_clips: score at most so many clips, evenly spread over the split; 0: all.

    Raises:
        ValueError: a held-out file is missing or wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ml_collections.ConfigDict,
        mesh: Mesh,
        max_clips: int = 0,
    ):
        voxel = config.data.voxel
        step = make_restore_step(model, voxel.log, voxel.mean, voxel.std)
        self._step = jax.jit(
            step, out_shardings=replicated(mesh), compiler_options=compiler.options()
        )
        self._config = config
        self._mesh = mesh
        # One clip, or tile, for each device that shares the batch.
        self._batch_size = mesh.shape["data"] * mesh.shape["fsdp"]
        self._clips = eval_clips(config.data)
        if max_clips and len(self._clips) > max_clips:
            every = math.ceil(len(self._clips) / max_clips)
            self._clips = eval_clips(config.data, 0, every)

    def score(
        self,
        params: Any,
        baselines: bool = False,
        strips: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """Scores the held-out clips.

        Args:
            params: the model's parameters, on the mesh.
            baselines: also score TFP and TFI.
            strips: pictures to keep.
            should_stop: asked before each clip.

        Raises:
            StoppedError: `should_stop` said so.
        """
        voxel = self._config.data.voxel
        return evaluate(
            self.restore_with(params),
            self._clips,
            voxel.bins,
            batch_size=self._batch_size,
            baselines=baselines,
            strips=strips,
            should_stop=should_stop,
            trained_steps=voxel.steps,
        )

    def restore_with(self, params: Any) -> Restore:
        """Restores a batch of clips, in tiles where the config says so."""
        tile = self._config.eval.tile_size or None
        overlap = self._config.eval.tile_overlap if tile else 0
        apply = functools.partial(self._apply, params)

        def restore(clips: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
            blur, counts = clips[0]
            grid = plan_grid(blur.shape[1:3], counts.shape[1:3], tile, overlap)
            return restore_tiled(apply, clips, grid, self._batch_size)

        return restore

    def _apply(self, params: Any, frames: np.ndarray, voxels: np.ndarray) -> jax.Array:
        return self._step(params, self._put(frames), self._put(voxels))

    def _put(self, whole: np.ndarray) -> jax.Array:
        sharding = batch_sharding(self._mesh, whole)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
