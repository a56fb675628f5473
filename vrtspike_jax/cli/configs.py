"""Python config files on the command line: `configs/baseline.py`, or `file.py:argument`."""

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any


def load_config(spec: str, overrides: list[str] | None = None) -> Any:
    """The locked ConfigDict of `path[:argument]`, with `a.b.c=value` overrides applied.

    Raises:
      ValueError: for a missing file, one without get_config, an unknown key, or a value of another
        type than the config's.
    """
    name, _, argument = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"config {path}: no such file")
    if path.suffix != ".py":
        raise ValueError(f"config {path}: wanted a Python file that defines get_config")
    # Variants import the config they override as `configs.<name>`, from the folder above.
    root = str(path.resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (SyntaxError, ImportError, NameError, AttributeError) as error:
        raise ValueError(f"config {path}: cannot be run: {error}") from error
    if not hasattr(module, "get_config"):
        raise ValueError(f"config {path}: has no function get_config")
    config = module.get_config(argument) if argument else module.get_config()
    for override in overrides or []:
        _override(config, override)
    return config.lock()


def parse_override(override: str) -> tuple[str, Any]:
    """'a.b=1' -> ('a.b', 1); what is no Python literal is text."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r}: wanted key=value")
    try:
        return key, ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return key, text


def _override(config: Any, override: str) -> None:
    key, value = parse_override(override)
    *parents, name = key.split(".")
    owner = config
    for parent in parents:
        owner = owner.get(parent) if hasattr(owner, "get") else None
    if not hasattr(owner, "get") or name not in owner:
        raise ValueError(f"override {override!r}: the config has no field {key}")
    try:
        owner[name] = value
    except TypeError as error:
        raise ValueError(f"override {override!r}: {error}") from error
