"""The progress bar of training: loss, PSNR, clips/s, time left."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class TrainingProgress:
    """A bar on a terminal; a plain line now and then where the output is a file.

    Args:
        console: where to write.
        start_step: steps already taken.
        num_steps: steps of the whole run.
        clips_per_step: clips of one optimiser step, over all devices.
        line_every: steps between plain lines.
    """

    def __init__(
        self,
        console: Console,
        start_step: int,
        num_steps: int,
        clips_per_step: int,
        line_every: int,
    ):
        self._console = console
        self._num_steps = num_steps
        self._clips_per_step = clips_per_step
        self._line_every = line_every
        self._rate = Rate(start_step)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("train"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=num_steps, completed=start_step, text="")

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows a finished step; `metrics` has `loss` and `psnr`."""
        self._rate.update(step)
        text = (
            f"loss {metrics['loss']:.4f}  PSNR {metrics['psnr']:.2f} dB  "
            f"{self.clips_per_second:.2f} clips/s  "
            f"{format_seconds(self._rate.seconds_per_step * (self._num_steps - step))} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif step % self._line_every == 0 or step == self._num_steps:
            self.note(f"step {step}/{self._num_steps}  {text}")

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def pause(self, seconds: float) -> None:
        """Leaves time that was not spent on training out of the rate."""
        self._rate.pause(seconds)

    @property
    def clips_per_second(self) -> float:
        """Over the last steps, without compilation."""
        per_step = self._rate.seconds_per_step
        return self._clips_per_step / per_step if per_step else 0.0


class Rate:
    """Seconds per step as a moving average that forgets the compilation in the first step."""

    def __init__(self, start_step: int):
        self._step = start_step
        self._time = time.perf_counter()
        self._updates = 0
        self.seconds_per_step = 0.0

    def update(self, step: int) -> None:
        """A step is done."""
        now = time.perf_counter()
        taken = (now - self._time) / max(step - self._step, 1)
        # The first update holds the compilation; it is all there is until the second replaces it.
        old = taken if self._updates < 2 else self.seconds_per_step
        self.seconds_per_step = 0.9 * old + 0.1 * taken
        self._step, self._time = step, now
        self._updates += 1

    def pause(self, seconds: float) -> None:
        """Time to leave out."""
        self._time += seconds


def format_seconds(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
