"""Finding the files of a data set in each of the published folder layouts.

`plain`: `<root>/<split>/<sequence>/{blur,sharp,spike}`, images of equal names, and one `.dat` a
frame (`spike/00000000.dat`) or one for the sequence (`spike/<any>.dat` or `spike.dat`). The unified
folder that the PyTorch original trains from has this layout.

`gopro`: `<root>/GOPRO_Large/<split>/<sequence>/{blur,blur_gamma,sharp}` with
`<root>/GOPRO_Large_spike_seq/<split>/<sequence>/spike`, one `.dat` a frame. As the original's later
documents have it, the images may also lie in `GOPRO_Large/<split>_GT_blurred/<sequence>` and
`GOPRO_Large/<split>_GT/<sequence>`.

`x4k`: `<root>/<split>_blurry_33/<scene>/<clip>/0004.png` (33 or 65 steps an exposure),
`<root>/<split>_fullRGB/...` of equal names, `<root>/<split>_spike_2xds/<scene>/<clip>/spike.dat`.

A sequence may lie any number of folders deep, and is named by its path. Everything is matched by
name; a frame without ground truth or spikes is an error, never left out in silence.
"""

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator

import ml_collections

from vrtspike_jax.data.alignment import AlignmentLog, Exposure
from vrtspike_jax.data.errors import DataError
from vrtspike_jax.data.images import SUFFIXES
from vrtspike_jax.data.paths import Root
from vrtspike_jax.data.sequences import FileList, SequenceFiles, frame_number, stem, x4k_number
from vrtspike_jax.spikes.camera import (
    CONFIG_NAME,
    CameraConfig,
    CameraConfigError,
    read_camera_config,
)

_MAX_DEPTH = 4


@dataclasses.dataclass(frozen=True)
class LayoutOptions:
    """The fields of `config.data` that say where files are; see `vrtspike_jax.data.config`."""

    layout: str = "plain"
    blur_folder: str = "blur"
    sharp_folder: str = "sharp"
    spike_folder: str = "spike"
    steps: int = 0
    alignment_log: str = ""
    steps_per_second: float = 1000.0

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "LayoutOptions":
        """Picks the fields out of `config.data`."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class _Folders:
    """The three folders of a sequence, before anything in them is looked at.

    `steps` is the length of an exposure where the layout says it and centres exposures on the
    step that a frame's name tells (x4k); else 0.
    """

    name: str
    blur: pathlib.Path
    sharp: pathlib.Path
    spikes: pathlib.Path
    steps: int = 0


def find_sequences(root: Root, split: str, options: LayoutOptions) -> list[SequenceFiles]:
    """Lists and matches the files of a split, sequences in order of their names.

    Args:
      root: the data set's folder.
      split: "train", "test", "val", ...
      options: the layout, and where exposures come from.

    Raises:
      DataError: the split or a folder is missing, a frame has no ground truth or no spikes, counts
        differ, or there is nothing at all. The message names the first such file.
    """
    found = list(find_readable(root, split, options, _stop))
    if not found:
        raise DataError(f"{root.path}: found no sequence in split {split!r} ({options.layout})")
    return found


def find_readable(
    root: Root,
    split: str,
    options: LayoutOptions,
    on_error: Callable[[str, DataError], None],
) -> Iterator[SequenceFiles]:
    """As `find_sequences`, but hands faults of single sequences to `on_error(name, error)`."""
    folders = {"plain": _plain, "gopro": _gopro, "x4k": _x4k}[options.layout]
    log = None
    if options.alignment_log:
        log = AlignmentLog(root.inside(options.alignment_log), options.steps_per_second)
    for entry in folders(root, split, options):
        try:
            yield _match(root, split, entry, options, log)
        except DataError as error:
            on_error(entry.name, error)


def _stop(name: str, error: DataError) -> None:
    raise error


def _plain(root: Root, split: str, options: LayoutOptions) -> Iterator[_Folders]:
    names = (options.blur_folder, options.sharp_folder, options.spike_folder)
    top = _split_folder(root, split)
    for name in _walk(root, top, lambda children: bool(set(names) & set(children))):
        blur, sharp, spikes = (root.inside(os.path.join(split, name, part)) for part in names)
        yield _Folders(name, blur, sharp, spikes)


def _gopro(root: Root, split: str, options: LayoutOptions) -> Iterator[_Folders]:
    if root.inside(f"GOPRO_Large/{split}_GT_blurred").is_dir():
        yield from _gopro_gt(root, split, options)
        return
    names = (options.blur_folder, options.sharp_folder)
    top = _split_folder(root, f"GOPRO_Large/{split}")
    for name in _walk(root, top, lambda children: bool(set(names) & set(children))):
        blur, sharp = (root.inside(os.path.join("GOPRO_Large", split, name, n)) for n in names)
        spikes = os.path.join("GOPRO_Large_spike_seq", split, name, options.spike_folder)
        yield _Folders(name, blur, sharp, root.inside(spikes))


def _gopro_gt(root: Root, split: str, options: LayoutOptions) -> Iterator[_Folders]:
    parts = [os.path.join("GOPRO_Large", f"{split}_GT{end}") for end in ("_blurred", "")]
    # Frames lie in the innermost folders; a sequence that only one side has is a fault of its own.
    names = (_walk(root, _split_folder(root, p), lambda children: not children) for p in parts)
    for name in sorted(set(itertools.chain(*names))):
        blur, sharp = (root.inside(os.path.join(part, name)) for part in parts)
        spikes = os.path.join("GOPRO_Large_spike_seq", split, name, options.spike_folder)
        yield _Folders(name, blur, sharp, root.inside(spikes))


def _x4k(root: Root, split: str, options: LayoutOptions) -> Iterator[_Folders]:
    steps = _x4k_steps(root, split, options)
    blurry = f"{split}_blurry_{steps}"
    # The clips are the innermost folders.
    for name in _walk(root, root.inside(blurry), lambda children: not children):
        spikes = root.inside(os.path.join(f"{split}_spike_2xds", name))
        sharp = root.inside(os.path.join(f"{split}_fullRGB", name))
        yield _Folders(name, root.inside(os.path.join(blurry, name)), sharp, spikes, steps)


def _x4k_steps(root: Root, split: str, options: LayoutOptions) -> int:
    """Steps an exposure, which the name of the folder of blurred frames says."""
    pattern = re.compile(re.escape(split) + r"_blurry_(\d{1,6})", re.ASCII)
    matches = (pattern.fullmatch(name) for name in root.folders(root.path))
    found = sorted(int(match[1]) for match in matches if match)
    if options.steps in found or (len(found) == 1 and not options.steps):
        return options.steps or found[0]
    wanted = f"{split}_blurry_{options.steps or '33'}"
    raise DataError(
        f"{root.path}: found {[f'{split}_blurry_{n}' for n in found]}, wanted a folder {wanted} "
        "(config.data.steps chooses one)"
    )


def _split_folder(root: Root, split: str) -> pathlib.Path:
    path = root.inside(split)
    if not path.is_dir():
        raise DataError(
            f"{path}: no such folder; wanted the split, found {root.folders(root.path)[:20]} "
            f"in {root.path}"
        )
    return path


def _walk(root: Root, top: pathlib.Path, is_sequence: Callable[[list[str]], bool]) -> Iterator[str]:
    """Names, relative to `top`, of the folders for whose child folders `is_sequence` holds."""

    def visit(folder: pathlib.Path, name: str, depth: int) -> Iterator[str]:
        children = root.folders(folder)
        if depth and is_sequence(children):
            yield name
        elif depth < _MAX_DEPTH:
            for child in children:
                yield from visit(folder / child, f"{name}/{child}" if name else child, depth + 1)

    yield from visit(top, "", 0)


def _match(
    root: Root,
    split: str,
    folders: _Folders,
    options: LayoutOptions,
    log: AlignmentLog | None,
) -> SequenceFiles:
    blur = _images(root, folders.blur, "blurred frames")
    sharp = _images(root, folders.sharp, "ground truth")
    if folders.steps:
        # Recorded and interpolated frames interleave, and their names need not sort in time.
        blur = FileList(blur.folder, tuple(sorted(blur.names, key=x4k_number)))
    # The folder of all sharp frames serves several exposure lengths, so it may hold more.
    sharp = _same_names(blur, sharp, "ground truth", extra=bool(folders.steps))
    spikes = _dat_files(root, folders.spikes)
    exposures: tuple[Exposure, ...] | None = None
    if len(spikes) == 1 and (len(blur) > 1 or log is not None or folders.steps):
        exposures = _exposures(split, folders, blur, spikes, options, log)
    else:
        if log is not None:
            raise DataError(
                f"{spikes.folder}: found one .dat a frame, which is an exposure each; wanted one "
                ".dat for the sequence, or an empty config.data.alignment_log"
            )
        spikes = _same_names(blur, spikes, "spikes", extra=False)
    gapless = bool(exposures and options.steps and log is None and not folders.steps)
    camera = _camera(root, pathlib.Path(spikes.folder))
    return SequenceFiles(folders.name, blur, sharp, spikes, exposures, gapless, camera)


def _camera(root: Root, folder: pathlib.Path) -> CameraConfig | None:
    """The `config.yaml` nearest to the spikes: in their folder or above it, up to the root."""
    while folder != root.path.parent:
        if (folder / CONFIG_NAME).is_file():
            try:
                return read_camera_config(root.inside(folder.relative_to(root.path) / CONFIG_NAME))
            except CameraConfigError as error:
                raise DataError(str(error)) from None
        folder = folder.parent
    return None


def _images(root: Root, folder: pathlib.Path, what: str) -> FileList:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; wanted the {what}")
    names = tuple(root.files(folder, SUFFIXES))
    if not names:
        raise DataError(f"{folder}: found no images ({', '.join(SUFFIXES)}); wanted the {what}")
    stems = [stem(name) for name in names]
    for first, second in itertools.pairwise(stems):
        if first == second:
            raise DataError(f"{folder}: found frame {first!r} twice, wanted one image a frame")
    return FileList(str(folder), names)


def _dat_files(root: Root, folder: pathlib.Path) -> FileList:
    """The `.dat` files in a folder, or a file of the folder's name with the ending `.dat`."""
    if folder.is_dir():
        names = root.files(folder, (".dat",))
    elif folder.with_suffix(".dat").name in root.files(folder.parent, (".dat",)):
        folder, names = folder.parent, [folder.with_suffix(".dat").name]
    else:
        raise DataError(f"{folder}: no such folder; wanted the spikes (.dat)")
    if not names:
        raise DataError(f"{folder}: found no .dat files, wanted the spikes")
    return FileList(str(folder), tuple(names))


def _same_names(blur: FileList, other: FileList, what: str, extra: bool) -> FileList:
    """`other` in the order of `blur`; every frame must have one, and `extra` ones may be left."""
    if [stem(n) for n in blur.names] == [stem(n) for n in other.names]:
        return other
    by_stem = {stem(name): name for name in other.names}
    missing = [name for name in blur.names if stem(name) not in by_stem]
    if missing:
        raise DataError(
            f"{other.folder}: found {len(other)} files of {what} for {len(blur)} blurred frames, "
            f"wanted one each; the first without is {blur.path(blur.names.index(missing[0]))}"
        )
    if len(other) != len(blur) and not extra:
        stems = {stem(name) for name in blur.names}
        first = next(name for name in other.names if stem(name) not in stems)
        raise DataError(
            f"{other.folder}: found {len(other)} files of {what} for {len(blur)} blurred frames, "
            f"wanted one each; the first too many is {first}"
        )
    return FileList(other.folder, tuple(by_stem[stem(name)] for name in blur.names))


def _exposures(
    split: str,
    folders: _Folders,
    blur: FileList,
    spikes: FileList,
    options: LayoutOptions,
    log: AlignmentLog | None,
) -> tuple[Exposure, ...]:
    """Where the exposure of each frame lies in the sequence's single `.dat`."""
    number = x4k_number if folders.steps else frame_number
    if log is not None:
        return tuple(log.exposure(folders.name, number(n), split) for n in blur.names)
    if folders.steps:
        first = (number(n) - folders.steps // 2 for n in blur.names)
        return tuple((start, start + folders.steps) for start in first)
    if options.steps:
        steps = options.steps
        return tuple((i * steps, (i + 1) * steps) for i in range(len(blur)))
    raise DataError(
        f"{spikes.path(0)}: found one .dat for {len(blur)} frames; wanted one a frame, or "
        "config.data.steps (steps an exposure), or config.data.alignment_log"
    )
