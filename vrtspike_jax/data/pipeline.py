"""From `config.data` to the batches that are trained on and the clips that are scored."""

from collections.abc import Iterator
from typing import Any

import grain
import ml_collections
import numpy as np

from vrtspike_jax.data.augment import Augmentation
from vrtspike_jax.data.clips import (
    ClipArrays,
    ClipSource,
    FrameStore,
    SlidingClips,
    Window,
    read_clip,
    scoring_windows,
)
from vrtspike_jax.data.config import check_data_config
from vrtspike_jax.data.errors import DataError
from vrtspike_jax.data.files import FileStore
from vrtspike_jax.data.geometry import check_crop, draw_crop, spike_size, whole_frame
from vrtspike_jax.data.iterator import TrainIterator
from vrtspike_jax.data.layouts import LayoutOptions, find_sequences
from vrtspike_jax.data.loading import LoadClip
from vrtspike_jax.data.paths import Root
from vrtspike_jax.data.prepared import PreparedStore
from vrtspike_jax.data.reels import ReelClips
from vrtspike_jax.data.scenes import SceneClips
from vrtspike_jax.data.verify import VerifyOptions, check_same_steps, verify_sequences


def train_iterator(
    config: ml_collections.ConfigDict, seed: int, shard_index: int = 0, shard_count: int = 1
) -> TrainIterator:
    """The endless stream of training batches of `config.data`; checks every file first.

    Every clip is seen once before any is seen again, in an order drawn anew each time. The stream
    depends on the data set, `seed` and the fields of `config.data` alone: not on the number of
    worker processes, hosts, or restarts.

    Args:
      config: `config.data` (see `vrtspike_jax.data.config`). `batch_size` is over all hosts.
      seed: of order, crops and augmentation, 0 to 2^32 - 1.
      shard_index, shard_count: this host, of how many.

    Returns:
      An iterator of batches (see `vrtspike_jax.data`), batch_size / shard_count clips each. With
      `config.scenes.on_device`, of the places of clips in its `source.bank` instead. Close it, or
      its threads and processes stay until it is collected.

    Raises:
      ValueError: a bad field of the config, or a bad file, named with what was found and wanted.
    """
    check_data_config(config)
    num_workers = config.num_workers
    if config.source == "scenes" and config.scenes.on_device:
        source = load = ReelClips(config)
        num_workers = 0  # nothing to do that would be worth a process with the bank in it
    else:
        source = open_clips(config, config.train_split)
        augmentation = Augmentation(config.flip, config.rotate, config.reverse_time)
        _check_shapes(source, config)
        trained = config.voxel.steps or source.trained_steps
        load = LoadClip(source, augmentation, config.crop_size, config.voxel.bins, trained)
    clips = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    return TrainIterator(
        clips.random_map(load),
        source,
        seed=seed,
        batch_size=config.batch_size,
        max_bad_clips=config.max_bad_clips,
        num_workers=num_workers,
        read_threads=config.read_threads,
        prefetch_batches=config.prefetch_batches,
        shard_index=shard_index,
        shard_count=shard_count,
    )


def eval_clips(
    config: ml_collections.ConfigDict, shard_index: int = 0, shard_count: int = 1
) -> "EvalClips":
    """Every frame of the evaluation split, in whole frames and in fixed order; checks files first.

    Args:
      config: `config.data`.
      shard_index, shard_count: gives every shard_count-th clip, for scoring on several hosts.

    Raises:
      ValueError: as `train_iterator`. A file that turns out damaged is an error here, not skipped.
    """
    check_data_config(config)
    return EvalClips(config, shard_index, shard_count)


def open_clips(config: ml_collections.ConfigDict, split: str) -> ClipSource:
    """The clips of a split to train on, whole and unchanged."""
    if config.source == "scenes":
        return SceneClips(config)
    return SlidingClips(open_frames(config, split), config.clip_length, config.frame_stride)


def open_frames(config: ml_collections.ConfigDict, split: str) -> FrameStore:
    """The sequences of a split, for the sources "plain" and "tfds"; checks files first.

    Raises:
      DataError: a bad file, named with what was found and wanted.
    """
    root = Root(config.root, config.allow_links)
    if config.source == "tfds":
        return _open_prepared(root, split, config)
    found = find_sequences(root, split, LayoutOptions.from_config(config))
    sequences = verify_sequences(found, VerifyOptions.from_config(config))
    check_same_steps(sequences)
    return FileStore(sequences)


def _open_prepared(root: Root, split: str, config: ml_collections.ConfigDict) -> PreparedStore:
    """Files were verified when the set was prepared; what is left is whether it fits the config."""
    store = PreparedStore(root, split)
    for sequence in range(len(store.lengths)):
        name, geometry = store.sequence_name(sequence), store.geometry(sequence)
        stated = (
            config.spike_height or geometry.spike[0],
            config.spike_width or geometry.spike[1],
            config.steps or store.steps(0),
        )
        found = (*geometry.spike, store.steps(sequence))
        if found != stated:
            raise DataError(
                f"{root.path}: found spikes of {found[0]} x {found[1]}, {found[2]} steps in "
                f"{split}/{name}; wanted {stated[0]} x {stated[1]}, {stated[2]} steps "
                "(config.data.spike_height, spike_width, steps, and the first sequence)"
            )
        scale = tuple(config.spike_scale)
        if geometry.spike != spike_size(*geometry.frame, scale):
            raise DataError(
                f"{root.path}: found {geometry} in {split}/{name}, wanted "
                f"config.data.spike_scale={scale}"
            )
        if geometry.frame[0] * geometry.frame[1] > config.max_image_pixels:
            raise DataError(
                f"{root.path}: found {geometry} in {split}/{name}, wanted at most "
                f"config.data.max_image_pixels={config.max_image_pixels}"
            )
    return store


def _check_shapes(source: ClipSource, config: ml_collections.ConfigDict) -> None:
    """Makes sure that all clips fit into one batch.

    Raises:
      DataError: two sequences would give arrays of different shapes, or turns would.
    """
    geometries = source.geometries()
    shapes = {}
    for name, geometry in geometries.items():
        check_crop(geometry, config.crop_size, name)
        crop = draw_crop(geometry, config.crop_size, np.random.default_rng(0))
        shapes.setdefault(crop.shape, f"{name} ({geometry})")
    if len(shapes) > 1:
        first, second = list(shapes.values())[:2]
        raise DataError(
            f"found sequences of different sizes, {first} and {second}, with "
            f"config.data.crop_size={config.crop_size}; wanted one size of crop for all"
        )
    (height, width), (spike_height, spike_width) = next(iter(shapes))
    if config.rotate and (height != width or spike_height != spike_width):
        raise DataError(
            f"found crops of {height} x {width} (spikes {spike_height} x {spike_width}) with "
            "config.data.rotate=True, wanted square ones: set crop_size, or rotate=False"
        )


class EvalClips:
    """An iterable of (sequence name, clip); see `eval_clips`. Can be walked through repeatedly.

    A clip is a dict with `blur`, `sharp` uint8 (T, H, W, 3); `spikes` uint8, raw 0 or 1,
    (T, S, Hs, Ws); `new` bool (T,), the frames that no earlier clip of the sequence has shown
    (count these alone, so that every frame counts once); and `frames`, a tuple of T frame names.
    """

    def __init__(self, config: ml_collections.ConfigDict, shard_index: int, shard_count: int):
        if not 0 <= shard_index < shard_count:
            raise ValueError(f"found shard {shard_index} of {shard_count}")
        if config.source == "scenes":
            load = _LoadScene(SceneClips(config, held_out=True))
            windows = range(config.scenes.eval_clips)
        else:
            store = open_frames(config, config.eval_split)
            load = _LoadWindow(store)
            windows = scoring_windows(store, config.clip_length, config.frame_stride)
        self._clips = grain.MapDataset.source(windows[shard_index::shard_count]).map(load)
        # Whole frames with raw spikes are big (170 MB for 5 frames at 720p), so few wait.
        self._options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)

    def __len__(self) -> int:
        return len(self._clips)

    def __iter__(self) -> Iterator[tuple[str, ClipArrays]]:
        clips = iter(self._clips.to_iter_dataset(self._options))
        try:
            for clip in clips:
                yield clip.pop("sequence"), clip
        finally:
            clips.close()


class _LoadWindow:
    def __init__(self, store: FrameStore):
        self._store = store

    def __call__(self, window: Window) -> dict[str, Any]:
        store, sequence = self._store, window.sequence
        crop = whole_frame(store.geometry(sequence))
        return read_clip(store, sequence, window.frames, crop) | {
            "new": np.array(window.new),
            "frames": tuple(store.frame_name(sequence, i) for i in window.frames),
            "sequence": store.sequence_name(sequence),
        }


class _LoadScene:
    def __init__(self, clips: SceneClips):
        self._clips = clips

    def __call__(self, i: int) -> dict[str, Any]:
        clip = self._clips[i]
        frames = len(clip["blur"])
        return clip | {
            "new": np.ones(frames, bool),
            "frames": tuple(f"{k:08d}" for k in range(frames)),
            "sequence": self._clips.name(i).rsplit("/", 1)[0],
        }
