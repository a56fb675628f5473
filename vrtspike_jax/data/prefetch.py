"""Batches on their way to the devices while the step before is still being computed."""

import collections
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grain
import jax
import numpy as np
from etils import epath

Batch = dict[str, Any]


class DevicePrefetch(grain.DatasetIterator):
    """Keeps `depth` batches on the devices or on their way there.

    A Grain iterator itself: its state is that of the batches that were handed out, not of those
    that wait, so save this one and not the iterator inside.

    Args:
      batches: a host's iterator of NumPy batches, such as `TrainIterator`.
      put: starts the transfer of a batch and does not wait for it; `to_devices(sharding)` is one.
      depth: batches that wait, 1 ...

    Attributes:
      wait_seconds: how long the last `next` waited for the host's iterator.
      total_wait_seconds: the same, summed up.
    """

    def __init__(
        self,
        batches: grain.DatasetIterator,
        put: Callable[[Batch], Batch],
        depth: int = 2,
    ):
        if depth < 1:
            raise ValueError(f"found a prefetch depth of {depth}, wanted at least 1")
        super().__init__(batches)
        self._put = put
        self._depth = depth
        self._waiting: collections.deque[tuple[Batch, dict[str, Any]]] = collections.deque()
        self._state = batches.get_state()
        self.wait_seconds = 0.0
        self.total_wait_seconds = 0.0

    @property
    def batches(self) -> grain.DatasetIterator:
        """The host's iterator."""
        return self._parent

    def __next__(self) -> Batch:
        self._assert_not_closed()
        self.wait_seconds = 0.0
        while len(self._waiting) < self._depth + 1:
            # The clock runs around `next` alone: waiting for input, not for the transfer.
            start = time.perf_counter()
            try:
                batch = next(self._parent)
            except StopIteration:
                break
            finally:
                self.wait_seconds += time.perf_counter() - start
            self._waiting.append((self._put(batch), self._parent.get_state()))
        self.total_wait_seconds += self.wait_seconds
        if not self._waiting:
            raise StopIteration
        batch, self._state = self._waiting.popleft()
        return batch

    def get_state(self) -> dict[str, Any]:
        """The state of the host's iterator when the last batch was handed out."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position; batches that wait are dropped."""
        self._parent.set_state(state)
        self._waiting.clear()
        self._state = self._parent.get_state()

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        """Restores from a checkpoint, as the host's iterator does."""
        restore = await self._parent.load(directory)

        async def finish() -> None:
            await restore
            self._waiting.clear()
            self._state = self._parent.get_state()

        return finish()


def to_devices(sharding: jax.sharding.Sharding) -> Callable[[Batch], Batch]:
    """Returns a function that starts the transfer of a host's batch under a sharding.

    The arrays become global ones: along the batch axis each host gives its part. Indices become
    int32, as JAX has no int64 by default.
    """

    def put(batch: Batch) -> Batch:
        return {
            name: jax.make_array_from_process_local_data(
                sharding, array.astype(np.int32) if array.dtype == np.int64 else array
            )
            for name, array in batch.items()
        }

    return put
