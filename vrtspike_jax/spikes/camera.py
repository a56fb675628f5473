"""SpikeCV-style `config.yaml`: the file beside recordings that says how large the picture is.

SpikeCV puts one beside the `.dat` files of a data set, with at least `spike_h` and `spike_w`.
"""

import dataclasses
import os
import pathlib

import yaml

PathLike = str | os.PathLike[str]
CONFIG_NAME = "config.yaml"
MAX_SIDE = 16384
MAX_BYTES = 2**16
MAX_DEPTH = 16


class CameraConfigError(ValueError):
    """A `config.yaml` is missing, unreadable, or its sizes make no sense."""


@dataclasses.dataclass(frozen=True)
class CameraConfig:
    """What a `config.yaml` says about the recordings beside it.

    Attributes:
      height, width: pixels of the picture (`spike_h`, `spike_w`).
      head_columns: extra columns stored after each row (`head_columns`, our addition; 0 if absent).
      name: `filename` in SpikeCV's files, the data set's name; empty if absent.
    """

    height: int
    width: int
    head_columns: int = 0
    name: str = ""


def read_camera_config(path: PathLike) -> CameraConfig:
    """Reads a SpikeCV-style `config.yaml`.

    Args:
      path: the YAML file, or the folder it is in.

    Raises:
      CameraConfigError (a ValueError): missing file, no YAML mapping, or sizes that are not whole
        numbers of 1 to 16384 (`head_columns`: 0 to 16384).
    """
    path = pathlib.Path(path)
    path = path / CONFIG_NAME if path.is_dir() else path
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CameraConfigError(f"{path}: found {size} bytes, wanted at most {MAX_BYTES}")
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except CameraConfigError:
        raise
    except FileNotFoundError:
        raise CameraConfigError(
            f"{path}: no such file; wanted a YAML file with spike_h and spike_w"
        ) from None
    except Exception as error:
        # PyYAML raises many kinds: for `!!bool x` KeyError, for the date 2001-99-99 ValueError, ...
        raise CameraConfigError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(values, dict):
        raise CameraConfigError(
            f"{path}: found {type(values).__name__}, wanted a mapping with spike_h and spike_w"
        )
    return CameraConfig(
        height=_size(values, "spike_h", 1, path),
        width=_size(values, "spike_w", 1, path),
        head_columns=_size(values, "head_columns", 0, path, default=0),
        name=_name(values.get("filename")),
    )


def find_camera_config(path: PathLike) -> CameraConfig | None:
    """Looks for the `config.yaml` that belongs to a recording: in its folder, then further up.

    Args:
      path: a `.dat` file or a folder. Four folders are searched, nearest first, as SpikeCV's data
        sets keep the file at their root.

    Returns:
      None if there is none. A file that is there but has no `spike_h` is another program's
      `config.yaml` and is passed over; one with an unusable `spike_h` is an error.
    """
    path = pathlib.Path(path).resolve()
    folders = [path, *path.parents] if path.is_dir() else list(path.parents)
    for folder in folders[:4]:
        candidate = folder / CONFIG_NAME
        if candidate.is_file() and b"spike_h" in _head(candidate):
            return read_camera_config(candidate)
    return None


def write_camera_config(path: PathLike, config: CameraConfig) -> None:
    """Writes a `config.yaml` that SpikeCV and `read_camera_config` understand.

    Args:
      path: the YAML file, or the folder to put it in.
      config: sizes and name.
    """
    path = pathlib.Path(path)
    path = path / CONFIG_NAME if path.is_dir() else path
    values = {
        "filename": config.name or path.parent.name,
        "spike_w": config.width,
        "spike_h": config.height,
        "is_labeled": False,
        "labeled_data_type": [0],
        "labeled_data_suffix": "None",
    }
    if config.head_columns:
        values["head_columns"] = config.head_columns
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Knows plain values only: no code, no deep nesting, and no aliases, whose few lines can name
    more elements than any memory holds."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent) or self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"wanted no aliases (*) and at most {MAX_DEPTH} levels",
                self.peek_event().start_mark,
            )
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _head(path: pathlib.Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_BYTES)


def _name(value: object) -> str:
    return str(value) if isinstance(value, str | int | float) else ""


def _size(
    values: dict, key: str, least: int, path: pathlib.Path, default: int | None = None
) -> int:
    value = values.get(key, default)
    # bool is an int in Python, and `spike_h: yes` is True in YAML.
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_SIDE:
        found = "nothing" if value is None else f"{value!r:.80}"
        raise CameraConfigError(
            f"{path}: found {found} for {key}, wanted a whole number of {least} to {MAX_SIDE}"
        )
    return value
