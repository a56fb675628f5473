"""The `vrtspike` console command: one subcommand a module, heavy imports inside the commands."""

import gc
import os
from typing import Annotated

# OpenCV's warnings about damaged files would stand beside the one line that names the file.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

import typer

from vrtspike_jax.cli import (
    bench,
    convert,
    deblur,
    doctor,
    evaluate,
    inspect,
    prepare,
    report,
    simulate,
)

app = typer.Typer(
    name="vrtspike",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from vrtspike_jax import __version__

        print(f"vrtspike-jax {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Spike-guided video deblurring: restore, score, look, measure."""


app.command("deblur", epilog=deblur.EXAMPLES)(deblur.command)
app.command("evaluate", epilog=evaluate.EXAMPLES)(evaluate.command)
app.command("report", epilog=report.EXAMPLES)(report.command)
app.command("simulate", epilog=simulate.EXAMPLES)(simulate.command)
app.command("inspect", epilog=inspect.EXAMPLES)(inspect.command)
app.command("prepare", epilog=prepare.EXAMPLES)(prepare.command)
app.command("convert", epilog=convert.EXAMPLES)(convert.command)
app.command("bench", epilog=bench.EXAMPLES)(bench.command)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.command)


def main() -> None:
    """Entry point of the console command."""
    gc.set_threshold(20_000)  # As in `vrtspike_jax.main`.
    app()


if __name__ == "__main__":
    main()
