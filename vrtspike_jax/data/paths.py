"""Looking into a data set's folder without ever leaving it."""

import dataclasses
import os
import pathlib

from vrtspike_jax.data.errors import DataError


@dataclasses.dataclass(frozen=True)
class Root:
    """The folder of a data set; every path is checked to lie inside it.

    Attributes:
      path: the folder.
      allow_links: whether symbolic links may lead out of it (they may always stay inside).

    Raises:
      DataError: the folder does not exist.
    """

    path: pathlib.Path
    allow_links: bool = False

    def __post_init__(self):
        object.__setattr__(self, "path", pathlib.Path(self.path).absolute())
        if not self.path.is_dir():
            raise DataError(
                f"{self.path}: no such folder; wanted the data set "
                "(config.data.root says where it is)"
            )

    def inside(self, relative: str | os.PathLike[str]) -> pathlib.Path:
        """Joins a path that comes from a config or a file.

        Raises:
          DataError: an absolute path, one with "..", or one that a link leads out of the root.
        """
        parts = pathlib.PurePath(relative)
        if parts.is_absolute() or ".." in parts.parts or "\0" in str(relative):
            raise DataError(f"{self.path}: found path {str(relative)!r}, wanted one inside it")
        path = self.path / parts
        self._check(path)
        return path

    def folders(self, folder: pathlib.Path) -> list[str]:
        """Names of the folders in `folder`, sorted; hidden ones are passed over."""
        return [e.name for e in self._entries(folder) if e.is_dir()]

    def files(self, folder: pathlib.Path, suffixes: tuple[str, ...]) -> list[str]:
        """Names of the files in `folder` with one of `suffixes` (lower case), sorted."""
        return [
            e.name
            for e in self._entries(folder)
            if os.path.splitext(e.name)[1].lower() in suffixes and e.is_file()
        ]

    def _entries(self, folder: pathlib.Path) -> list[os.DirEntry]:
        try:
            with os.scandir(folder) as found:
                entries = [e for e in found if not e.name.startswith(".")]
        except OSError as error:
            raise DataError(f"{folder}: cannot be listed: {error.strerror}") from None
        for entry in entries:
            # A link is the only way out; `is_symlink` costs no system call.
            if entry.is_symlink():
                self._check(pathlib.Path(entry.path))
        return sorted(entries, key=lambda e: e.name)

    def _check(self, path: pathlib.Path) -> None:
        if self.allow_links:
            return
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:
            raise DataError(f"{path}: not a usable path: {error}") from None
        if not real.is_relative_to(self.path.resolve()):
            raise DataError(
                f"{path}: leads out of the data set to {real}; wanted files inside {self.path} "
                "(if you made this link yourself, set config.data.allow_links=True)"
            )
