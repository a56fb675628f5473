"""Which spikes belong to which frame: one `.dat` a frame, or one long `.dat` cut into exposures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vrtspike_jax.data.alignment import AlignmentLog
from vrtspike_jax.data.errors import DataError
from vrtspike_jax.restoration.frames import natural_key
from vrtspike_jax.spikes import DatFile, find_camera_config, plausible_sizes


@dataclasses.dataclass(frozen=True)
class Cutting:
    """How one long `.dat` is cut into exposures.

    Attributes:
      steps: spike steps of each exposure, which follow each other without a gap; 0: unknown.
      start: first step of the first exposure, with `steps`.
      log: alignment log with the exposure of each frame, instead of `steps`.
      steps_per_second: the camera's rate, with `log`.
      sequence: the sequence's name in `log`; "" tries the names of the folders.
      partial: whether the recording may hold more exposures than there are frames.
    """

    steps: int = 0
    start: int = 0
    log: Path | None = None
    steps_per_second: float = 1000.0
    sequence: str = ""
    partial: bool = False

    @property
    def says_where(self) -> bool:
        """Whether it tells where the exposures of a long `.dat` lie."""
        return self.steps > 0 or self.log is not None


@dataclasses.dataclass(frozen=True)
class Exposures:
    """The spikes of each frame of a sequence.

    Attributes:
      files: for each frame the file and (first step, number of steps) in it.
    """

    files: tuple[tuple[DatFile, int, int], ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        dat = self.files[0][0]
        return dat.height, dat.width

    @property
    def steps(self) -> tuple[int, int]:
        """Fewest and most steps of an exposure."""
        counts = [count for _, _, count in self.files]
        return min(counts), max(counts)

    def read(self, index: int) -> np.ndarray:
        """Spikes of frame `index`, uint8 0 or 1, [S,Hs,Ws]."""
        dat, start, count = self.files[index]
        return dat.read(start, count)


@dataclasses.dataclass(frozen=True)
class NoExposures:
    """Stands in for `Exposures` where a model takes no spikes: `num_frames` times nothing."""

    num_frames: int
    files: tuple = ()
    size: tuple[int, int] = (0, 0)
    steps: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return self.num_frames

    def read(self, index: int) -> None:
        """There are none."""


def open_exposures(
    path: Path,
    frame_names: Sequence[str],
    frame_folder: Path,
    size: tuple[int, int] | None = None,
    head_columns: int = 0,
    cutting: Cutting = Cutting(),
    fallback: tuple[int, int] | None = None,
) -> Exposures:
    """Finds the spikes of every frame and checks that they are whole.

    Args:
      path: a folder with one `.dat` a frame, or one long `.dat`, or a folder with nothing else.
      frame_names: names of the frames. In a folder, the `.dat` of the same name, or of the same
        number, belongs to a frame; for a video ("00000000", ...) the order does.
      frame_folder: the folder or file of the frames, for messages and for names in the log.
      size: (height, width) of the spikes; None: from a SpikeCV `config.yaml` beside the files.
      head_columns: extra bits after each stored row.
      cutting: for one long `.dat`.
      fallback: size to try where neither `size` nor a `config.yaml` says it.

    Raises:
      ValueError: a missing or mis-sized file, an exposure beyond the end of the file, or more or
        fewer exposures than frames.
    """
    files = _list(path)
    size, head_columns = _size(files[0], size, head_columns, fallback)
    if path.is_file() or (len(files) == 1 and cutting.says_where):
        dat = _open(files[0], size, head_columns)
        windows = _cut(dat, cutting, frame_names, frame_folder)
        return Exposures(tuple((dat, first, count) for first, count in windows))
    matched = _match(path, files, frame_names, frame_folder, cutting.partial)
    dats = [_open(file, size, head_columns) for file in matched]
    _check_uncut(path, dats, cutting)
    return Exposures(tuple((dat, 0, dat.num_frames) for dat in dats))


def _list(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder or file of spikes")
    found = [p for p in path.iterdir() if p.suffix.lower() == ".dat" and p.name[0] != "."]
    if not found:
        raise ValueError(f"{path}: no spike files; wanted one .dat a frame")
    return sorted(found, key=natural_key)


def _size(
    file: Path,
    size: tuple[int, int] | None,
    head_columns: int,
    fallback: tuple[int, int] | None,
) -> tuple[tuple[int, int], int]:
    if size is not None:
        return size, head_columns
    camera = find_camera_config(file)
    if camera is not None:
        return (camera.height, camera.width), head_columns or camera.head_columns
    if fallback is not None:
        return fallback, head_columns
    raise ValueError(f"{file}: the size of the picture is unknown; give --spike-size HEIGHTxWIDTH")


def _open(file: Path, size: tuple[int, int], head_columns: int) -> DatFile:
    try:
        return DatFile(file, *size, head_columns)
    except FileNotFoundError:
        raise
    except ValueError as error:
        guesses = [f"{g.height}x{g.width}" for g in plausible_sizes(file, 3)]
        hint = f"; plausible sizes: {', '.join(guesses)}" if guesses else ""
        raise ValueError(f"{error}{hint} (--spike-size HEIGHTxWIDTH)") from None


def _check_uncut(folder: Path, dats: list[DatFile], cutting: Cutting) -> None:
    """Where each file is an exposure, settings that cut a long one must not be lost in silence."""
    if cutting.log is not None or cutting.start:
        name = "--alignment" if cutting.log is not None else "--spike-start"
        raise ValueError(f"{folder}: holds one .dat a frame; {name} is for one long .dat")
    for dat in dats:
        if cutting.steps and dat.num_frames != cutting.steps:
            raise ValueError(
                f"{dat.path}: found {dat.num_frames} steps, wanted the {cutting.steps} of "
                "--spikes-per-frame"
            )


def _match(
    folder: Path, files: list[Path], frame_names: Sequence[str], frames: Path, partial: bool
) -> list[Path]:
    if not frames.is_dir():
        if len(files) < len(frame_names) or (len(files) > len(frame_names) and not partial):
            raise ValueError(
                f"{frames}: found {len(frame_names)} frames, but {folder} holds {len(files)} "
                "spike files; wanted one a frame"
            )
        return files[: len(frame_names)]
    by_name = {file.stem: file for file in files}
    by_number = {int(file.stem): file for file in files if file.stem.isdigit()}
    matched = []
    for name in frame_names:
        file = by_name.get(name) or (by_number.get(int(name)) if name.isdigit() else None)
        if file is None:
            raise ValueError(f"{folder}: no spikes for frame {name}; wanted {name}.dat")
        matched.append(file)
    return matched


def _cut(
    dat: DatFile, cutting: Cutting, frame_names: Sequence[str], frames: Path
) -> list[tuple[int, int]]:
    if cutting.log is not None:
        return _cut_by_log(dat, cutting, frame_names, frames)
    if cutting.steps < 1:
        raise ValueError(
            f"{dat.path}: one file for {len(frame_names)} frames; say where the exposures lie "
            "with --spikes-per-frame or --alignment"
        )
    whole = (dat.num_frames - cutting.start) // cutting.steps
    surplus = whole - len(frame_names)
    if cutting.start < 0 or surplus < 0 or (surplus and not cutting.partial):
        raise ValueError(
            f"{dat.path}: its {dat.num_frames} steps from step {cutting.start} on hold {whole} "
            f"exposures of {cutting.steps} steps, but {frames} holds {len(frame_names)} frames; "
            "wanted as many (--frames restores the first ones only)"
        )
    return [(cutting.start + i * cutting.steps, cutting.steps) for i in range(len(frame_names))]


def _cut_by_log(
    dat: DatFile, cutting: Cutting, frame_names: Sequence[str], frames: Path
) -> list[tuple[int, int]]:
    log = AlignmentLog(cutting.log, cutting.steps_per_second)
    guesses = [cutting.sequence] if cutting.sequence else _sequence_names(frames)
    windows = []
    for position, name in enumerate(frame_names):
        number = int(name) if name.isdigit() else position
        first, last = _look_up(log, guesses, number)
        if last > dat.num_frames:
            raise ValueError(
                f"{cutting.log}: the exposure of frame {name} is steps {first} to {last}, but "
                f"{dat.path} holds {dat.num_frames} steps"
            )
        windows.append((first, last - first))
    return windows


def _sequence_names(frames: Path) -> list[str]:
    """What `sequence.mp4`, `sequence/blur` or `split/sequence/blur` may be called in a log."""
    folder, parent = frames.absolute(), frames.absolute().parent
    names = [folder.stem, f"{parent.name}/{folder.stem}", f"{parent.parent.name}/{parent.name}"]
    return [*names, parent.name]


def _look_up(log: AlignmentLog, sequences: list[str], frame: int) -> tuple[int, int]:
    for sequence in sequences[:-1]:
        try:
            return log.exposure(sequence, frame)
        except DataError:
            continue
    return log.exposure(sequences[-1], frame)
