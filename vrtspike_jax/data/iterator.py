"""The endless stream of training batches, which can be left and taken up at any clip."""

import json
from collections.abc import Awaitable
from typing import Any

import grain
from absl import flags, logging
from etils import epath

from vrtspike_jax.data.clips import ClipArrays, ClipSource
from vrtspike_jax.data.errors import DataError, TooManyBadClips
from vrtspike_jax.data.geometry import whole_frame
from vrtspike_jax.data.loading import NO_CLIP


class TrainIterator(grain.DatasetIterator):
    """Batches of training clips; a Grain iterator, so Orbax saves and restores it.

    Its state is a number of clips, so it resumes exactly with another number of worker processes,
    hosts or clips a batch. All hosts share one stream of clips: batch n of all of them together
    holds the same clips, in the same order, as batch n of a single host would.

    Args:
      elements: the endless stream of loaded clips, by index (`LoadClip`).
      source: where they come from.
      seed: what `elements` were shuffled with, kept in the state.
      batch_size: clips a batch over all shards.
      max_bad_clips: different unreadable clips that are put up with.
      num_workers, read_threads, prefetch_batches: as in `config.data`.
      shard_index, shard_count: this host, of how many.

    Raises:
      ValueError: the batch size does not divide by the number of shards.
    """

    def __init__(
        self,
        elements: grain.MapDataset,
        source: ClipSource,
        *,
        seed: int,
        batch_size: int,
        max_bad_clips: int,
        num_workers: int = 0,
        read_threads: int = 1,
        prefetch_batches: int = 1,
        shard_index: int = 0,
        shard_count: int = 1,
    ):
        super().__init__()
        self._batches: grain.DatasetIterator | None = None
        if not 0 <= shard_index < shard_count or batch_size % shard_count:
            raise ValueError(
                f"found shard {shard_index} of {shard_count} and config.data.batch_size="
                f"{batch_size}; wanted a batch size that divides by the number of hosts"
            )
        self.source = source
        self._elements = elements
        self._identity = {"seed": seed, "num_clips": len(source)}
        self._batch_size = batch_size
        self._max_bad_clips = max_bad_clips
        self._num_workers = num_workers
        self._read_options = grain.ReadOptions(read_threads, max(read_threads, prefetch_batches))
        self._worker_options = grain.MultiprocessingOptions(num_workers, prefetch_batches)
        self._shard = (shard_index, shard_count)
        self._next_clip = 0
        self._replaced = 0
        self._bad_clips: set[int] = set()

    @property
    def bad_clips(self) -> dict[int, str]:
        """Clips that could not be read so far: index and name. Of this host alone."""
        return {i: self.source.name(i) for i in sorted(self._bad_clips)}

    @property
    def replaced(self) -> int:
        """How often a clip was replaced because it could not be read. Of this host alone."""
        return self._replaced

    def __next__(self) -> ClipArrays:
        """The next batch: see `vrtspike_jax.data`.

        Raises:
          TooManyBadClips: more than `max_bad_clips` different clips were unreadable.
        """
        self._assert_not_closed()
        if self._batches is None:
            self._batches = self._open()
        batch = next(self._batches)
        skipped = batch.pop("skipped")
        self._next_clip += self._batch_size
        self._count(skipped[skipped != NO_CLIP].tolist())
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position, in clips of the whole stream, and what was skipped before it."""
        return self._identity | {
            "next_clip": self._next_clip,
            "replaced": self._replaced,
            "bad_clips": sorted(self._bad_clips),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position.

        Raises:
          ValueError: the state is of another data set or seed, whose stream is another one.
        """
        if not isinstance(state, dict):
            raise DataError(f"data position to restore: found {state!r:.100}, wanted a dict")
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(
                    f"data position to restore: found {name}={state.get(name)!r:.100}, wanted "
                    f"{value} (the data set, the split, the clip length or config.seed is not the "
                    "one of the checkpoint)"
                )
        try:
            next_clip, replaced = int(state["next_clip"]), int(state["replaced"])
            bad_clips = {int(i) for i in state["bad_clips"]}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"data position to restore: found a broken one: {error!r}") from None
        if next_clip < 0 or any(not 0 <= i < len(self.source) for i in bad_clips):
            raise DataError(f"data position to restore: found {next_clip}, {sorted(bad_clips)}")
        self._close_batches()
        self._next_clip, self._replaced, self._bad_clips = next_clip, replaced, bad_clips

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        """Restores from a checkpoint, whatever number of processes it was saved by."""

        async def read() -> None:
            paths = sorted(epath.Path(directory).glob("process_*-of-*.json"))
            if not paths:
                raise DataError(f"{directory}: found no process_*.json, wanted the data position")
            try:
                states = [json.loads(path.read_text()) for path in paths]
                merged = states[0] | {
                    "replaced": sum(state["replaced"] for state in states),
                    "bad_clips": sorted({i for state in states for i in state["bad_clips"]}),
                }
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{directory}: not a data position: {error!r}") from None
            self.set_state(merged)

        return read()

    def start_prefetch(self) -> None:
        """Starts reading, so that the first batch is there sooner."""
        if self._batches is None:
            self._batches = self._open()
        self._batches.start_prefetch()

    def close(self) -> None:
        """Stops threads and worker processes."""
        self._close_batches()
        super().close()

    def _open(self) -> grain.DatasetIterator:
        shard, count = self._shard
        clips = self._elements[self._next_clip :]
        batches = clips.batch(self._batch_size // count, drop_remainder=True)
        # Whole batches are dealt out, so that all hosts' together are consecutive clips.
        stream = batches[shard::count].to_iter_dataset(self._read_options)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():
                # Grain hands absl's flags to its workers, and may be used without absl.app.
                flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(self._worker_options)
        return iter(stream)

    def _close_batches(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _count(self, skipped: list[int]) -> None:
        self._replaced += len(skipped)
        for i in skipped:
            if i in self._bad_clips:
                continue
            self._bad_clips.add(i)
            logging.warning(
                "Skipped clip %s (%d of at most %d): %s",
                self.source.name(i),
                len(self._bad_clips),
                self._max_bad_clips,
                self._why(i),
            )
        if len(self._bad_clips) > self._max_bad_clips:
            names = ", ".join(list(self.bad_clips.values())[:10])
            last = skipped[-1]
            raise TooManyBadClips(
                f"{len(self._bad_clips)} clips could not be read, wanted at most "
                f"config.data.max_bad_clips={self._max_bad_clips}: {names}; the last, "
                f"{self.source.name(last)}: {self._why(last)}"
            )

    def _why(self, i: int) -> str:
        # The reason was raised in a worker; reading once more is cheaper than carrying it along.
        try:
            self.source.read(i, whole_frame(self.source.geometry(i)))
        except DataError as error:
            return str(error)
        return "it could be read when tried again"
