"""From the data iterator to the devices, with the waiting time measured."""

import json
import time

import jax
import numpy as np
from jax.sharding import Mesh

from vrtspike_jax.data.iterator import TrainIterator
from vrtspike_jax.training.sharding import put_batch


class Feed:
    """Batches for `train_step`: micro-batches stacked, on the devices.

    The iterator reads ahead in its own workers. While `next` waits here, and while the batch
    travels, the devices still compute the step before: only what takes longer costs time.

    Args:
        iterator: yields this host's part of a micro-batch; `get_state` and `set_state` with dicts
            that survive JSON, whose position does not depend on the number of hosts; `source`
            names clips, `bad_clips` those that could not be read.
        accumulation: micro-batches of one step (A).
        mesh: from `make_mesh`.
    """

    def __init__(self, iterator: TrainIterator, accumulation: int, mesh: Mesh):
        self._iterator = iterator
        self._accumulation = accumulation
        self._mesh = mesh
        self._state = self._read_state()
        self.wait_seconds = 0.0

    def next(self) -> dict[str, jax.Array]:
        """The next batch: each array with the leading axes (A, B). Adds to `wait_seconds`."""
        start = time.perf_counter()
        micro = [next(self._iterator) for _ in range(self._accumulation)]
        self._state = self._read_state()
        self.wait_seconds += time.perf_counter() - start
        stacked = {name: np.stack([batch[name] for batch in micro]) for name in micro[0]}
        return put_batch(stacked, self._mesh, leading=1)

    def state(self) -> bytes:
        """The position after the last batch that `next` returned."""
        return self._state

    def set_state(self, state: bytes) -> None:
        """Goes back to a position that `state` gave."""
        self._iterator.set_state(json.loads(state))
        self._state = state

    def clip_name(self, index: int) -> str:
        """ "sequence/frame" of a clip."""
        return self.source.name(index)

    @property
    def source(self) -> object:
        """Where the clips come from."""
        return self._iterator.source

    @property
    def bad_clips(self) -> dict[int, str]:
        """Clips that could not be read and were replaced: index -> name. Of this host alone."""
        return self._iterator.bad_clips

    def close(self) -> None:
        """Ends the iterator's threads and workers."""
        self._iterator.close()

    def _read_state(self) -> bytes:
        return json.dumps(self._iterator.get_state()).encode()
