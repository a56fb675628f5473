"""`vrtspike convert`: weights from PyTorch to a checkpoint, and back."""

import ast
import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from vrtspike_jax.cli import console
from vrtspike_jax.cli.errors import reports_errors

EXAMPLES = """Examples:

vrtspike convert 005_VRT_videodeblurring_DVD.pth checkpoints/vrt_dvd

vrtspike convert runs/baseline weights.safetensors        (to take back to PyTorch)

vrtspike convert spynet_sintel_final-3d2a1287.pth weights/spynet.safetensors

vrtspike convert vgg16-397923af.pth weights/vgg16.safetensors

vrtspike convert trained.pth checkpoints/own --set tsa_heads=8 --set vrt.num_heads=4
"""


@reports_errors
def command(
    source: Annotated[
        Path, typer.Argument(help=".pth, .safetensors, .npz, or a checkpoint or workdir.")
    ],
    destination: Annotated[
        Path, typer.Argument(help="Folder for a checkpoint, or .safetensors or .pth.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Model setting that the weights do not show, name=value."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at the destination.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write what was made here; - for stdout.")
    ] = None,
) -> None:
    r"""Convert VRT, VRT with spikes, SpyNet or VGG16 between PyTorch files and checkpoints.

    Strict: every missing, unexpected or mis-shaped name is listed, and nothing is written then.
    .pth files need PyTorch (pip install 'vrtspike-jax\[torch]'), nothing else does.
    """
    console.check_writable(json_file, "--json")
    from vrtspike_jax.convert.converter import convert

    fields = dict(_field(text) for text in set_ or [])
    done = convert(source, destination, fields, overwrite)
    console.say(f"{done.destination}: {done.kind}, {done.parameters:,} parameters")
    for name, value in done.model.items():
        console.say(f"  {name}: {value}")
    values = dataclasses.asdict(done) | {"destination": str(done.destination)}
    console.write_json(json_file, values | {"model": _plain(done.model)})


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r}: wanted name=value")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def _plain(value: Any) -> Any:
    if hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
