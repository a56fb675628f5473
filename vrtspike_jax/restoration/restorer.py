"""From blurred frames and spikes to sharp frames: any number of frames, any size.

import vrtspike_jax

restorer = vrtspike_jax.load()  # the small model of this package, or a training workdir
sharp = restorer.restore(frames, spikes)
"""

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32

from vrtspike_jax import compiler
from vrtspike_jax.restoration import planning
from vrtspike_jax.restoration.clips import Clip, blend_clips, plan_clips
from vrtspike_jax.restoration.inference import for_inference, make_restore_step, store_params
from vrtspike_jax.restoration.tiling import Grid, plan_grid, stream_tiled
from vrtspike_jax.restoration.voxels import VoxelSettings

WHOLE = "whole"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a sequence is cut up, and the one compiled function that restores a batch of tiles.

    Attributes:
      grid: tiles in space.
      clip_length: frames in a clip.
      clip_overlap: frames that neighbouring clips share.
      batch_size: tiles in a call; a multiple of the number of devices.
      counted: whether `apply` takes uint8 counts, or else normalised float32 voxels.
      apply: (frames [B,T,h,w,3], voxels [B,T,hs,ws,K]) -> restored [B,T,h,w,3] on the devices.
      bytes_needed: bytes on a device that a call takes beside the parameters, by the compiler.
    """

    grid: Grid
    clip_length: int
    clip_overlap: int
    batch_size: int
    counted: bool
    apply: Callable[[np.ndarray, np.ndarray], jax.Array]
    bytes_needed: int


class Restorer:
    """A model with its parameters on all devices.

    Args:
      step: jittable (params, frames [B,T,h,w,3], voxels [B,T,hs,ws,K]) -> restored float32
        [B,T,h,w,3] in [0, 1]; see `make_restore_step`.
      params: the first argument of `step`.
      voxels: what the model expects of its spikes.
      clip_length: frames that it was trained on at once.
      shortest_clip: frames that it needs at least.
      devices: default all local devices.
      name: what to call the model in records.
    """

    def __init__(
        self,
        step: Callable[[Any, jax.Array, jax.Array], jax.Array],
        params: Any,
        voxels: VoxelSettings,
        clip_length: int = 5,
        shortest_clip: int = 1,
        devices: Sequence[jax.Device] | None = None,
        name: str = "",
    ):
        devices = list(devices or jax.local_devices())
        mesh = Mesh(np.array(devices), ("tiles",))
        self._tiles = NamedSharding(mesh, PartitionSpec("tiles"))
        self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self._step = jax.jit(step, out_shardings=self._tiles, compiler_options=compiler.options())
        self._compiled: dict[Any, tuple[Callable, int]] = {}
        self.devices = devices
        self.voxels = voxels
        self.clip_length = clip_length
        self.shortest_clip = shortest_clip
        self.name = name

    def plan(
        self,
        frame_size: tuple[int, int],
        spike_size: tuple[int, int],
        frame_dtype: np.dtype = np.uint8,
        *,
        steps: int | tuple[int, int] = 0,
        tile: int | tuple[int, int] | str | None = None,
        tile_overlap: int | None = None,
        clip: int | None = None,
        clip_overlap: int | None = None,
    ) -> Plan:
        """Chooses tiles and clips, and compiles the one function that restores them.

        Args:
          frame_size: height and width of the frames, pixels.
          spike_size: height and width of the spikes, pixels.
          frame_dtype: uint8, uint16 or float32.
          steps: spike steps of the exposures: of all, or fewest and most; 0: those of training.
          tile: side of the tiles in pixels, or (height, width); "whole" for whole frames; None
            takes what fits in memory, by the compiler's memory analysis.
          tile_overlap: pixels that neighbouring tiles share; None: 64, or half of a small tile.
          clip: frames in a clip; None: as trained.
          clip_overlap: frames that neighbouring clips share; None: 2, or half of a short clip.

        Raises:
          ValueError: for settings that the model cannot take, or if nothing fits in memory.
        """
        length = self.clip_length if clip is None else clip
        if length < self.shortest_clip:
            raise ValueError(f"clip of {length} frames: the model needs {self.shortest_clip}")
        shared = min(2, length // 2) if clip_overlap is None else clip_overlap
        plan_clips(length + 1, length, shared)  # refuses impossible overlaps
        dtype = np.dtype(frame_dtype)
        spike_size = self.voxels.size(spike_size, frame_size)
        whole = all(self.voxels.are_whole(n) for n in np.ravel(steps))

        def counted(grid: Grid) -> bool:
            return whole and not grid.resampled

        def measure(grid: Grid) -> float:
            try:
                return self._compile(grid, length, dtype, counted(grid))[1]
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                return math.inf  # the compiler tries kernels out, in the memory that is free

        if tile is None:
            limit = planning.memory_limit(self.devices)
            grid = planning.choose_grid(frame_size, spike_size, tile_overlap, limit, measure).grid
        elif tile == WHOLE:
            grid = plan_grid(frame_size, spike_size)
        else:
            side = tile if isinstance(tile, int) else min(tile)
            overlap = planning.default_overlap(side) if tile_overlap is None else tile_overlap
            grid = plan_grid(frame_size, spike_size, tile, overlap)
        apply, needed = self._compile(grid, length, dtype, counted(grid))
        return Plan(grid, length, shared, len(self.devices), counted(grid), apply, needed)

    def _compile(
        self, grid: Grid, length: int, dtype: np.dtype, counted: bool
    ) -> tuple[Callable, int]:
        batch = len(self.devices)
        frame = (batch, length, grid.rows.tile, grid.cols.tile, 3)
        voxel = (batch, length, grid.rows.spike_tile, grid.cols.spike_tile, self.voxels.bins)
        voxel_dtype = np.uint8 if counted else np.float32
        key = (frame, voxel, dtype, voxel_dtype)
        if key not in self._compiled:
            shapes = [
                jax.ShapeDtypeStruct(shape, kind, sharding=self._tiles)
                for shape, kind in ((frame, dtype), (voxel, voxel_dtype))
            ]
            compiled = self._step.lower(self._params, *shapes).compile()
            self._compiled[key] = (self._caller(compiled), _bytes_needed(compiled, self._params))
        return self._compiled[key]

    def _caller(self, compiled: Callable) -> Callable[[np.ndarray, np.ndarray], jax.Array]:
        def apply(frames: np.ndarray, voxels: np.ndarray) -> jax.Array:
            return compiled(self._params, *jax.device_put((frames, voxels), self._tiles))

        return apply

    def count(self, spikes: np.ndarray | None, frame_size: tuple[int, int]) -> np.ndarray:
        """Spikes [S,Hs,Ws] to the counts that `stream` wants, [hs,ws,K]; see `VoxelSettings`.

        Raises:
          ValueError: the model needs spikes, and there are none.
        """
        if not self.voxels.bins:
            return np.zeros((*frame_size, 0), np.uint8)
        if spikes is None:
            raise ValueError(f"{self.name or 'the model'} needs spikes, and none are given")
        return self.voxels.count(np.asarray(spikes), frame_size)

    def stream(
        self,
        plan: Plan,
        num_frames: int,
        read: Callable[[int], tuple[np.ndarray, np.ndarray]],
        done: Callable[[int], bool] = lambda index: False,
        readers: int = 2,
    ) -> Iterator[tuple[int, Float32[np.ndarray, "H W 3"]]]:
        """Restores a sequence of any length in memory that does not depend on its length.

        Args:
          plan: from `plan`, for the sizes of this sequence.
          num_frames: its length.
          read: index -> frame [H,W,3] of the planned type, and spike counts of its exposure, from
            `count`. Called once for each frame that is needed, from threads.
          done: whether a frame is there already; clips that would add nothing are left out.
          readers: threads that read ahead. With 1 the frames are read in ascending order.

        Yields:
          (index, restored frame in [0, 1]), ascending, without those that are done.
        """
        clips = plan_clips(num_frames, plan.clip_length, plan.clip_overlap)
        clips = [clip for clip in clips if not all(done(index) for index in clip.frames)]
        with concurrent.futures.ThreadPoolExecutor(readers) as pool:
            ahead = _ReadAhead(pool, clips, read)
            inputs = (self._stack(plan, read) for read in ahead)
            restored = stream_tiled(plan.apply, inputs, plan.grid, plan.batch_size)
            try:
                yield from blend_clips(clips, restored, done)
            finally:
                ahead.cancel()

    def _stack(self, plan: Plan, read: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
        frames, counts = (np.stack(arrays) for arrays in zip(*read, strict=True))
        if not plan.counted:  # interpolation comes after the logarithm
            counts = self.voxels.normalize(counts)
        return frames, counts

    def restore(
        self,
        frames: np.ndarray,
        spikes: np.ndarray | Sequence[np.ndarray] | None,
        *,
        tile: int | tuple[int, int] | str | None = None,
        tile_overlap: int | None = None,
        clip: int | None = None,
        clip_overlap: int | None = None,
    ) -> np.ndarray:
        """Restores a sequence that is held in memory.

        Args:
          frames: blurred RGB, [T,H,W,3]: uint8 in 0..255, uint16 in 0..65535, or float in 0..1.
            Any T and any H and W.
          spikes: the spikes fired during each frame's exposure, uint8 or bool, 0 or 1: [T,S,Hs,Ws]
            with S steps an exposure, or a sequence of T arrays [S,Hs,Ws] with S of their own. The
            same field of view as the frames, in pixels of any size. None for a model without a
            spike branch, which takes no notice of any.
          tile, tile_overlap, clip, clip_overlap: as in `plan`.

        Returns:
          Sharp frames of the frames' shape, type and range (float32 for any float).

        Raises:
          ValueError: for shapes, types or settings that do not fit.
        """
        frames = _checked_frames(frames)
        spikes = [None] * len(frames) if spikes is None else spikes
        if len(spikes) != len(frames):
            raise ValueError(f"found {len(frames)} frames and spikes of {len(spikes)} exposures")
        lengths = [0 if exposure is None else len(exposure) for exposure in spikes]
        steps = min(lengths), max(lengths)
        counts = [self.count(exposure, frames.shape[1:3]) for exposure in spikes]
        if len({grid.shape for grid in counts}) != 1:
            raise ValueError(f"found spikes of sizes {sorted({g.shape[:2] for g in counts})}")
        settings = {"tile": tile, "tile_overlap": tile_overlap}
        settings |= {"clip": clip, "clip_overlap": clip_overlap, "steps": steps}
        camera = frames.shape[1:3] if spikes[0] is None else np.shape(spikes[0])[1:]
        plan = self.plan(frames.shape[1:3], camera, frames.dtype, **settings)
        restored = np.empty_like(frames)
        for index, frame in self.stream(plan, len(frames), lambda i: (frames[i], counts[i])):
            restored[index] = from_unit(frame, frames.dtype)
        return restored


class _ReadAhead:
    """Reads the frames of the next clip while the present one is computed."""

    def __init__(self, pool, clips: Sequence[Clip], read: Callable[[int], tuple]):
        self._pool, self._clips, self._read = pool, clips, read
        self._futures: dict[int, concurrent.futures.Future] = {}

    def __iter__(self) -> Iterator[list[tuple]]:
        """What was read of the frames of each clip; of frames before it nothing is kept."""
        for clip, following in zip(self._clips, [*self._clips[1:], None], strict=True):
            for index in [i for i in self._futures if i < clip.start]:
                del self._futures[index]
            self._submit(clip)
            if following is not None:
                self._submit(following)
            yield [self._futures[index].result() for index in clip.frames]

    def _submit(self, clip: Clip) -> None:
        for index in sorted(set(clip.frames)):
            if index not in self._futures:
                self._futures[index] = self._pool.submit(self._read, index)

    def cancel(self) -> None:
        """Gives up what has not been read."""
        for future in self._futures.values():
            future.cancel()


def from_unit(frame: Float32[np.ndarray, "*any"], dtype: np.dtype) -> np.ndarray:
    """[0, 1] to the type's range, rounded to the nearest integer where it is one."""
    if np.issubdtype(dtype, np.floating):
        return frame.astype(dtype)
    top = np.iinfo(dtype).max
    return np.clip(np.rint(frame * np.float32(top)), 0, top).astype(dtype)


def _checked_frames(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"found frames of shape {frames.shape}, wanted [T, H, W, 3]")
    if np.issubdtype(frames.dtype, np.floating):
        if not (frames.min() >= 0 and frames.max() <= 1):
            raise ValueError(
                f"found frames of {frames.min()} to {frames.max()}, wanted floats in 0..1"
            )
        return frames.astype(np.float32)
    if frames.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"found frames of type {frames.dtype}, wanted uint8, uint16 or float")
    return frames


def _bytes_needed(compiled: Any, params: Any) -> int:
    stats = compiled.memory_analysis()
    resident = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    total = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return max(1, total - stats.alias_size_in_bytes - resident)


def load(
    checkpoint: str | os.PathLike | None = None, *, devices: Sequence[jax.Device] | None = None
) -> Restorer:
    """Loads a trained model for restoring.

    Args:
      checkpoint: a training workdir, its `checkpoints` folder, or one checkpoint in it. Of several
        the one with the best score is taken; averaged (EMA) parameters where there are any. Or a
        file of weights (`vrtspike_jax.weights`); None or "small" takes the small model that comes
        with this package.
      devices: the devices to spread tiles over; default all local ones.

    Raises:
      ValueError: there is no checkpoint, or it is damaged; names the file.
    """
    return load_with_config(checkpoint, devices=devices)[0]


def load_with_config(
    checkpoint: str | os.PathLike | None = None, *, devices=None
) -> tuple[Restorer, Any]:
    """As `load`, with the whole config that the model was trained with."""
    from vrtspike_jax import weights
    from vrtspike_jax.models.build import build_model
    from vrtspike_jax.training.checkpoint_files import locate
    from vrtspike_jax.training.checkpoints import load_for_inference

    found = weights.SMALL if checkpoint is None else weights.find(checkpoint)
    found = found if weights.is_weights(found) else locate(found)
    model, params, config = load_for_inference(found)
    if jax.default_backend() == "cpu" and config.model.dtype != "float32":
        # CPUs emulate half precision: slower, and less exact.
        model = build_model({**config.model, "dtype": "float32"})
    restorer = from_model(model, params, config, devices=devices, name=str(found.absolute()))
    return restorer, config


def from_model(model, params: Any, config, *, devices=None, name: str = "") -> Restorer:
    """A restorer for a model and the whole config it was trained with (model and data are read)."""
    backbone = getattr(model, "vrt", model)
    if backbone.upscale != 1:
        raise ValueError(f"{name}: a model of upscale {backbone.upscale}, wanted 1")
    voxel = config.data.voxel
    bins = voxel.bins if hasattr(model, "spike_bins") else 0
    settings = VoxelSettings(
        bins,
        voxel.log,
        voxel.mean,
        voxel.std,
        voxel.steps or config.data.steps,
        tuple(config.data.spike_scale),
    )
    model = for_inference(model)
    return Restorer(
        make_restore_step(model, voxel.log, voxel.mean, voxel.std),
        store_params(model, jax.tree.map(jnp.asarray, params)),
        settings,
        clip_length=config.data.clip_length,
        shortest_clip=max(2, backbone.pa_frames // 2 + 1),
        devices=devices,
        name=name,
    )


def restore(
    frames: np.ndarray,
    spikes: np.ndarray | Sequence[np.ndarray],
    checkpoint: str | os.PathLike | Restorer | None = None,
    **settings,
) -> np.ndarray:
    """Restores a sequence with a checkpoint: `load(checkpoint).restore(frames, spikes)`.

    To restore several sequences, load once and call `Restorer.restore`, which compiles once.

    Args:
      frames: [T,H,W,3]; see `Restorer.restore`.
      spikes: [T,S,Hs,Ws]; see `Restorer.restore`.
      checkpoint: see `load`; or what it returned.
      **settings: `tile`, `tile_overlap`, `clip`, `clip_overlap`; see `Restorer.plan`.
    """
    restorer = checkpoint if isinstance(checkpoint, Restorer) else load(checkpoint)
    return restorer.restore(frames, spikes, **settings)
