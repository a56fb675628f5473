"""Trains or scores: `python -m vrtspike_jax.main --config=configs/quickstart.py --workdir=runs/x`.

The same command again goes on where the workdir's checkpoint stands. Exit codes: 0 done, 1 the run
failed (diverged, full disk), 2 bad input, 130 Ctrl-C, 143 SIGTERM (both saved a checkpoint).
"""

import gc
import logging
import sys
from pathlib import Path

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

from vrtspike_jax import compiler
from vrtspike_jax.training.checkpoints import CheckpointWriteError
from vrtspike_jax.training.distributed import join_hosts
from vrtspike_jax.training.loop import TrainingDivergedError, train
from vrtspike_jax.training.score_workdir import score_workdir

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Config file; fields by --config.field=value.")
flags.DEFINE_string(
    "workdir", None, "Directory of checkpoints, metrics and pictures; else runs/<config's name>."
)
flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or score the workdir's checkpoint.")
flags.DEFINE_string("coordinator", None, "host:port of the first of several hosts.")
flags.DEFINE_integer("num_hosts", None, "How many hosts take part.", lower_bound=1)
flags.DEFINE_integer("host_index", None, "Which of them this is, from 0.", lower_bound=0)


def main(argv: list[str]) -> int:
    """Joins the other hosts, if there are any, and dispatches."""
    if len(argv) > 1:
        print(f"error: unexpected argument {argv[1]!r}", file=sys.stderr)
        return 2
    workdir = FLAGS.workdir
    if workdir is None and FLAGS.config is not None:
        name = config_flags.get_config_filename(FLAGS["config"])
        workdir = f"runs/{Path(name.partition(':')[0]).stem}"
    return dispatch(FLAGS.config, workdir, FLAGS.mode)


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the command line; a mistake in it becomes one line and exit code 2.

    Returns:
        What is left of `argv` without the flags.
    """
    try:
        left = FLAGS(argv)
        if FLAGS.config is not None:
            # Of a file that failed to load, the first access tells why.
            getattr(FLAGS.config, "seed", None)
        return left
    except AttributeError as error:
        print(f"error: --config: no field {_one_line(error)}", file=sys.stderr)
    except (flags.Error, OSError, TypeError, ValueError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
    sys.exit(2)


def _one_line(error: Exception) -> str:
    """The message, out of the errors it may be wrapped in."""
    message: object = error
    while isinstance(message, Exception) and len(message.args) == 1:
        message = message.args[0]
    return ". ".join(line.strip().rstrip(":") for line in str(message).splitlines())


def dispatch(config: ml_collections.ConfigDict | None, workdir: str | None, mode: str) -> int:
    """Trains or scores; what a user can mend becomes one line instead of a traceback.

    Returns:
        The exit code.
    """
    try:
        if workdir is None:
            raise ValueError("--workdir is missing, and there is no --config to name it after")
        if FLAGS.verbosity <= 0:
            # Finer log lines than ours would tear the progress bar.
            logging.getLogger("absl").setLevel(logging.ERROR)
            logging.getLogger("jax").setLevel(logging.WARNING)
        join_hosts(FLAGS.coordinator, FLAGS.num_hosts, FLAGS.host_index)
        if mode == "eval":
            return score_workdir(config, workdir)
        if config is None:
            raise ValueError("--config is missing: which config file to train with")
        return train(config, workdir)
    except (ValueError, OSError, TrainingDivergedError, CheckpointWriteError) as error:
        if FLAGS.verbosity > 0:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ValueError) else 1


def run() -> None:
    """Entry point."""
    # Before any computation, and not at import: tests import this module.
    jax.config.config_with_absl()
    # By default garbage is collected whenever there are 700 objects more: while JAX traces a model,
    # which keeps nearly all of the millions that it makes, that is a sixth of the time.
    gc.set_threshold(20_000)
    compiler.keep_compiled_programs()
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
