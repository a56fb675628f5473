"""`vrtspike report`: one HTML page from an evaluation or a deblur run."""

from pathlib import Path
from typing import Annotated

import typer

from vrtspike_jax.cli import console
from vrtspike_jax.cli.errors import reports_errors

EXAMPLES = """Examples:

vrtspike report scores --out report.html        (after vrtspike evaluate --out scores)

vrtspike report restored --out report.html      (after vrtspike deblur --out restored)
"""


@reports_errors
def command(
    source: Annotated[Path, typer.Argument(help="Folder of an evaluation or a deblur run.")],
    out: Annotated[Path, typer.Option(help="The page to write, .html.")],
    title: Annotated[str, typer.Option(help="Heading (else the folder's name).")] = "",
    clips: Annotated[int, typer.Option(min=0, help="Frames to show at most.")] = 12,
    width: Annotated[int, typer.Option(min=64, help="Widest picture, pixels.")] = 1280,
) -> None:
    """Write one self-contained page: scores, curves, before/after sliders, spikes and errors.

    It needs no server and no network, and works on a phone and with the keyboard alone.
    """
    console.check_writable(out, "--out")
    if out.exists():
        raise ValueError(f"{out}: exists already; nothing is overwritten")
    from vrtspike_jax.report import content, page
    from vrtspike_jax.restoration.sinks import write_atomically

    found = content.read(source, clips)
    html = page.render(found, title or f"vrtspike: {source.resolve().name}", width)
    write_atomically(out, html.encode())
    console.say(
        f"{out}: {len(html) / 2**20:.1f} MiB, {console.count_of(len(found.clips), 'frame')} shown"
    )
