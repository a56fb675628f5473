"""Reading `.npz` files that may be damaged or made to do harm."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

# Weights hardly compress; what unpacks to far more than the file holds is not weights.
MAX_RATIO = 64
_SUFFIX = ".npy"


def read_npz(
    path: str | os.PathLike[str], wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name.

    Sizes are compared with the file's before anything is unpacked, and nothing is unpickled.

    Args:
        path: the file.
        wanted: whether to read the array of a name.

    Raises:
        ValueError: not a readable `.npz` of plain numbers; names the file.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if wanted(e.filename.removesuffix(_SUFFIX))]
            limit = MAX_RATIO * path.stat().st_size
            total = sum(entry.file_size for entry in entries)
            if total > limit:
                raise ValueError(f"found {total} bytes unpacked, wanted at most {limit}")
            return {e.filename.removesuffix(_SUFFIX): _read(archive, e) for e in entries}
    except Exception as error:
        # zipfile and NumPy raise many kinds (BadZipFile, zlib.error, RuntimeError, SyntaxError...).
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable .npz file: {reason}") from error


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds Python objects, wanted numbers")
        count = int(np.prod(shape, dtype=object)) if shape else 1
        if count * dtype.itemsize > entry.file_size:
            raise ValueError(f"{entry.filename} says {shape} of {dtype}, more than it holds")
        data = file.read(count * dtype.itemsize)
        array = np.frombuffer(data, dtype, count)
        return array.reshape(shape, order="F" if fortran else "C")
