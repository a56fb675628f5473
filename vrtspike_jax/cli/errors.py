"""How commands fail: one clear line on standard error and exit code 2, never a traceback."""

import functools
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import typer

Command = TypeVar("Command", bound=Callable)

# Set this variable to see where an error came from.
TRACEBACK_VARIABLE = "VRTSPIKE_TRACEBACK"


def reports_errors(command: Command) -> Command:
    """Turns bad input (ValueError, OSError), lack of memory and Ctrl-C into a line and a code."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        try:
            result = command(*args, **kwargs)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # Who read the output has left, as `| head` does. What is still in the buffer must not
            # fail once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None  # as shells report SIGPIPE
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            message = _explain(error)
            if message is None or os.environ.get(TRACEBACK_VARIABLE):
                raise
            print(f"error: {message}", file=sys.stderr)
            raise typer.Exit(2) from None

    return wrapped


def _explain(error: Exception) -> str | None:
    """One line for the user; None for what is a defect of this program."""
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
        # XLA's errors are RuntimeErrors; of these only a lack of memory is the user's matter.
        if "RESOURCE_EXHAUSTED" in text or "ut of memory" in text:
            return "the device ran out of memory; use a smaller tile, clip or batch"
        return None
    return text or type(error).__name__
