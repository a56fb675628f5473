"""Ctrl-C and SIGTERM: finish the step, save, leave with a code that a scheduler understands."""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Notes SIGINT and SIGTERM while it is entered; a second SIGINT interrupts at once.

    On several hosts SIGTERM is left to JAX, whose coordinator picks a step that all hosts can
    still reach, so that they leave together.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    @property
    def exit_code(self) -> int:
        """128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM; 0 if there was none."""
        return 0 if self.signal is None else 128 + self.signal

    def now(self) -> bool:
        """Whether this host was asked to stop."""
        return self.signal is not None

    def agreed(self, step: int) -> bool:
        """Whether all hosts stop after `step`; every host must ask at every step."""
        if jax.process_count() == 1:
            return self.now()
        if multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal == signal.SIGTERM

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
