"""The training loop: step, log, validate, save, and leave in good order."""

import math
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
from rich.console import Console

from vrtspike_jax.evaluation import METRICS, Evaluation, StoppedError, write_strips
from vrtspike_jax.training.interrupt import StopRequest
from vrtspike_jax.training.progress import TrainingProgress, format_seconds
from vrtspike_jax.training.run import Run, prepare

# Steps before a requested profile starts, so that compilation and warm-up are left out.
PROFILE_AFTER = 10


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> int:
    """Trains until `config.num_steps`, or goes on where the workdir's checkpoint stands.

    Args:
        config: the whole config.
        workdir: checkpoints, metrics.jsonl, TensorBoard events, strips and config.json go here.

    Returns:
        The exit code: 0 when done, 130 after Ctrl-C, 143 after SIGTERM (both saved).

    Raises:
        ValueError: something is wrong with config, data or workdir; nothing was changed.
        TrainingDivergedError: see there. The last checkpoint is good.
        CheckpointWriteError: the disk is full or failing. Earlier checkpoints are intact.
    """
    console = Console(quiet=jax.process_index() != 0)
    run = prepare(config, Path(workdir), console)
    try:
        return Loop(run).run()
    finally:
        run.close()


class Loop:
    """What the loop keeps on the host between steps."""

    def __init__(self, run: Run):
        self._run = run
        self._config = run.config
        self._step = self._start = int(run.state.step)
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._evaluation: Evaluation | None = None
        self._saved = self._step if self._step else -1
        self._interval = (time.perf_counter(), self._step, 0.0)
        self._profiling = False
        self._bad_clips = set(run.feed.bad_clips)

    def run(self) -> int:
        """Runs to the end or until asked to stop; returns the exit code."""
        config = self._config
        progress = TrainingProgress(
            self._run.console,
            self._step,
            config.num_steps,
            config.data.batch_size * config.optim.accumulation_steps,
            config.log_every_steps,
        )
        with StopRequest() as stop, progress:
            self._progress, self._stop = progress, stop
            try:
                # A run that was stopped between a step and its validation owes the validation.
                self._validate_if_due()
                while self._step < config.num_steps and not stop.agreed(self._step):
                    self._one_step()
                    self._validate_if_due()
                    if self._step % config.checkpoint_every_steps == 0:
                        self._save()
            except StoppedError:
                pass
            except Exception:
                # Ctrl-C reaches worker processes too; what they say while dying is not an error.
                if not stop.now():
                    raise
            if stop.exit_code:
                self._leave(progress)
                return stop.exit_code
            self._finish()
        self._report()
        return 0

    def _one_step(self) -> None:
        """Dispatches a step, and reports the one before while the devices work."""
        run = self._run
        batch = run.feed.next()
        self._report_bad_clips()
        self._profile()
        run.state, metrics = run.train_step(run.state, batch, run.fixed)
        self._step += 1
        self._flush()
        self._pending = (self._step, metrics)
        if self._due(self._config.log_every_steps):
            self._flush()

    def _due(self, every: int) -> bool:
        return self._step % every == 0 or self._step == self._config.num_steps

    def _flush(self) -> None:
        """Waits for the dispatched step and reports it."""
        if self._pending is None:
            return
        step, arrays = self._pending
        self._pending = None
        metrics = {name: jax.device_get(value) for name, value in arrays.items()}
        numbers = {name: value.item() for name, value in metrics.items() if value.ndim == 0}
        self._progress.update(step, numbers)
        if numbers["loss_spike"]:
            self._event(step, "loss_spike", loss=numbers["loss"])
        if numbers["skipped"]:
            self._report_skip(step, metrics, numbers)
        if step % self._config.log_every_steps == 0 or step == self._config.num_steps:
            self._write_line(step, numbers)

    def _write_line(self, step: int, numbers: dict[str, Any]) -> None:
        """A training line: values of this step, speed since the line before."""
        names = ("loss", "charbonnier", "perceptual", "psnr", "learning_rate", "grad_norm")
        now, waited = time.perf_counter(), self._run.feed.wait_seconds
        then, first, waited_then = self._interval
        seconds = max(now - then, 1e-9)
        clips = self._config.data.batch_size * self._config.optim.accumulation_steps
        speed = {
            "step_seconds": seconds / max(step - first, 1),
            "clips_per_second": clips * (step - first) / seconds,
            "input_wait_fraction": (waited - waited_then) / seconds,
        }
        self._run.log.write(step, {name: numbers[name] for name in names} | speed)
        self._interval = (now, step, waited)

    def _report_skip(self, step: int, metrics: dict[str, Any], numbers: dict[str, Any]) -> None:
        """Names the clips at fault; stops after too many skips in a row."""
        index, finite = metrics["index"].ravel(), metrics["clip_finite"].ravel()
        names = [self._run.feed.clip_name(int(i)) for i in index[~finite]]
        row, limit = numbers["skipped_in_row"], self._config.optim.max_skipped_in_row
        self._event(step, "skipped", clips=names, in_row=row)
        self._progress.note(
            f"step {step}: loss or gradient is not finite; update skipped ({row} in a row, stops "
            f"at {limit}). Clips: {', '.join(names) or 'none by itself'}"
        )
        if row >= limit:
            saved = f"step {self._saved}" if self._saved > 0 else "none was written yet"
            raise TrainingDivergedError(
                f"stopped at step {step}: {row} steps in a row were not finite, the last with the "
                f"clips {', '.join(names) or '(none by itself)'}. The last good checkpoint "
                f"({saved}) is kept. Try a lower config.optim.learning_rate, or "
                "config.model.dtype='float32'."
            )

    def _report_bad_clips(self) -> None:
        bad = self._run.feed.bad_clips
        for index in bad.keys() - self._bad_clips:
            self._event(self._step + 1, "unreadable_clip", clip=bad[index], total=len(bad))
        self._bad_clips = set(bad)

    def _event(self, step: int, event: str, **values: Any) -> None:
        self._run.log.write(step, {"event": event, **values}, group="events")

    def _validate_if_due(self) -> None:
        run, config = self._run, self._config
        if self._step == 0 or self._step == run.last_eval_step:
            return
        if not self._due(config.eval_every_steps):
            return
        self._flush()
        start = time.perf_counter()
        last = self._step == config.num_steps
        self._evaluation = self._score(baselines=last)
        restored, blurred = self._evaluation.mean("restored"), self._evaluation.mean("blurred")
        line = {f"eval_{name}": restored[name] for name in METRICS}
        line |= {f"eval_blurred_{name}": blurred[name] for name in METRICS}
        run.last_eval_step = self._step
        if math.isfinite(restored["psnr_rgb"]) and (
            run.best is None or restored["psnr_rgb"] > run.best["psnr_rgb"]
        ):
            run.best = {"step": self._step, "psnr_rgb": restored["psnr_rgb"]}
        run.log.write(self._step, line, group="eval")
        self._save(restored)
        if jax.process_index() == 0:
            write_strips(self._evaluation, run.workdir / "strips" / f"step_{self._step:07d}")
        seconds = time.perf_counter() - start
        self._pause(seconds)
        self._progress.note(
            f"step {self._step}  held out: restored {restored['psnr_rgb']:.2f} dB, blurred "
            f"{blurred['psnr_rgb']:.2f} dB ({self._evaluation.clips} clips, "
            f"{format_seconds(seconds)})"
        )

    def _score(self, baselines: bool) -> Evaluation:
        state, wanted = self._run.state, self._config.eval
        params = state.params if state.packed_ema is None else state.ema_params
        # Several hosts must not leave a collective one by one; they finish it.
        stop = self._stop.now if jax.process_count() == 1 else lambda: False
        return self._run.scorer.score(params, baselines, wanted.strips, stop)

    def _pause(self, seconds: float) -> None:
        then, first, waited = self._interval
        self._interval = (then + seconds, first, waited)
        self._progress.pause(seconds)

    def _save(self, metrics: dict[str, float] | None = None) -> None:
        """Saves this step once; waits for the step itself, not for the disk."""
        self._flush()
        if self._saved != self._step:
            start = time.perf_counter()
            self._run.save(self._step, metrics)
            self._saved = self._step
            self._pause(time.perf_counter() - start)

    def _leave(self, progress: TrainingProgress) -> None:
        """Asked to stop: saves the last whole step."""
        self._flush()
        if self._step > 0:
            self._save()
            self._run.store.wait()
        progress.note(f"stopped at step {self._step}, saved; the same command goes on from here")

    def _finish(self) -> None:
        self._save()
        self._run.store.wait()
        self._end_profile()

    def _report(self) -> None:
        """The table at the end; a finished run that is started again scores once more."""
        if self._evaluation is None:
            self._evaluation = self._score(baselines=True)
        self._run.console.print(self._evaluation.table())

    def _profile(self) -> None:
        steps, done = self._config.profile_steps, self._step - self._start
        if steps and done == PROFILE_AFTER and jax.process_index() == 0:
            jax.profiler.start_trace(str(self._run.workdir / "profile"))
            self._profiling = True
        elif done == PROFILE_AFTER + steps:
            self._end_profile()

    def _end_profile(self) -> None:
        if self._profiling:
            self._flush()
            jax.profiler.stop_trace()
            self._profiling = False
