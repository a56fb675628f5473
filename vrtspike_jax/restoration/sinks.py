"""Where restored frames go: a folder of images that can be resumed, or one video file."""

import concurrent.futures
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vrtspike_jax.restoration.restorer import from_unit

RECORD = "deblur.json"
RUNNING, DONE = "running", "done"
_ENCODING = {
    ".png": [cv2.IMWRITE_PNG_COMPRESSION, 3],
    ".jpg": [
        cv2.IMWRITE_JPEG_QUALITY,
        97,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ],
}


class FolderSink:
    """A folder of PNG or JPEG files beside `deblur.json`, the record of what is being done.

    The record is written before the first frame and says which inputs and settings the frames come
    from, so that the same command can go on after an interruption and another one cannot mix its
    frames in. Every file appears under its name only once it is complete.

    Args:
      folder: created with its first file; may exist if empty or begun by the same command.
      names: names of the frames, without ending.
      record: inputs and settings that have to be equal for going on.
      suffix: ".png" or ".jpg".
      bits: 8 or 16 a channel.

    Raises:
      ValueError: the folder holds other files, a finished run, or one with other settings; or it
        cannot be written.
    """

    def __init__(
        self, folder: Path, names: list[str], record: dict[str, Any], suffix: str, bits: int
    ):
        if suffix == ".jpg" and bits != 8:
            raise ValueError(f"{folder}: JPEG holds 8 bits a channel, asked for {bits}")
        self.folder, self._names, self._suffix = Path(folder), names, suffix
        self._dtype = np.uint8 if bits == 8 else np.uint16
        self._record = record
        self._existed = self.folder.exists()
        self._done = self._find_done()

    @staticmethod
    def read_record(folder: Path) -> dict[str, Any] | None:
        """The record in a folder; None if there is none.

        Raises:
          ValueError: it is damaged.
        """
        try:
            record = json.loads((folder / RECORD).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / RECORD}: cannot be read: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get("chosen"), dict):
            raise ValueError(f"{folder / RECORD}: is no record of this version")
        return record

    def _find_done(self) -> set[int]:
        if not self._existed:
            if not _nearest(self.folder).is_dir() or not os.access(_nearest(self.folder), os.W_OK):
                raise ValueError(f"{self.folder}: cannot be created in {_nearest(self.folder)}")
            return set()
        if not self.folder.is_dir() or not os.access(self.folder, os.W_OK):
            raise ValueError(f"{self.folder}: is no folder that can be written")
        found = self.read_record(self.folder)
        if found is None:
            if any(self.folder.iterdir()):
                raise ValueError(f"{self.folder}: holds files already; nothing is overwritten")
            return set()
        if found.get("state") == DONE:
            raise ValueError(f"{self.folder}: holds a finished run; nothing is overwritten")
        for key, wanted in self._record.items():
            if found.get(key) != wanted:
                raise ValueError(
                    f"{self.folder}: was begun with {key} {found.get(key)!r}, now asked for "
                    f"{wanted!r}; nothing is overwritten"
                )
        return {i for i in range(len(self._names)) if self.path(i).exists()}

    def path(self, index: int) -> Path:
        """The file of frame `index`."""
        return self.folder / f"{self._names[index]}{self._suffix}"

    def done(self, index: int) -> bool:
        """Whether frame `index` was there before this run began."""
        return index in self._done

    def begin(self, extra: dict[str, Any]) -> None:
        """Makes the folder and writes the record, with `extra` beside the settings."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._save(RUNNING, extra)
        except OSError as error:
            raise ValueError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def write(self, index: int, frame: np.ndarray) -> None:
        """Writes a frame in [0, 1]."""
        stored = np.ascontiguousarray(from_unit(frame, self._dtype)[..., ::-1])
        encoded, data = cv2.imencode(self._suffix, stored, _ENCODING[self._suffix])
        if not encoded:
            raise ValueError(f"{self.path(index)}: cannot be encoded")
        write_atomically(self.path(index), data.tobytes())

    def finish(self, extra: dict[str, Any]) -> None:
        """Marks the run as finished."""
        self._save(DONE, extra)

    def abandon(self) -> None:
        """After an error: a run without a single frame leaves nothing behind."""
        if not self.folder.is_dir() or any(self.path(i).exists() for i in range(len(self._names))):
            return
        (self.folder / RECORD).unlink(missing_ok=True)
        if not self._existed and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _save(self, state: str, extra: dict[str, Any]) -> None:
        record = {"state": state, **self._record, **extra}
        text = json.dumps(record, indent=2) + "\n"
        write_atomically(self.folder / RECORD, text.encode())


def _nearest(path: Path) -> Path:
    path = path.absolute().parent
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that appears under its name only once it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def background(
    write: Callable[[int, np.ndarray], None], workers: int, waiting: int
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Writes in threads, with at most `waiting` frames that are not written yet.

    Yields a function like `write` that returns early; errors come out of a later call or at the
    end.
    """
    futures: list[concurrent.futures.Future] = []
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:

        def submit(index: int, frame: np.ndarray) -> None:
            while len(futures) >= waiting:
                futures.pop(0).result()
            futures.append(pool.submit(write, index, frame))

        yield submit
        for future in futures:
            future.result()
