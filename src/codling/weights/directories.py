"""The directory of a model as it is written: its files appear when all of them are complete. Needs no torch."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codling.errors import ConfigError
from codling.files import TEMPORARY
from codling.weights.catalogue import CONFIG


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A directory to write files into, which become those of `directory` if the block ends without an error.

    A directory that is new appears with all of them at once. Into one that exists they are moved one after the other,
    as two names cannot change at once, and over those of the same name; `config.json` is the last, so a kill between
    two moves leaves no model where there was none, and where there was one it leaves one that is refused as damaged.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    exists = directory.is_dir()
    # Inside one that exists, which may be the root of a file system: no rename leaves that.
    place = directory if exists else directory.parent
    with tempfile.TemporaryDirectory(dir=place, prefix=TEMPORARY) as temporary:
        # One level down, as the temporary directory itself is for its owner alone.
        new = Path(temporary, "new")
        new.mkdir()
        yield new
        if exists or not _renamed(new, directory):
            for path in sorted(new.iterdir(), key=lambda path: path.name == CONFIG):
                os.replace(path, directory / path.name)


def _renamed(new: Path, directory: Path) -> bool:
    """Give a directory its name; False if another process has written one of that name meanwhile."""
    try:
        new.rename(directory)
    except OSError:
        if directory.is_dir():
            return False
        raise
    return True


def check_empty(directory: Path) -> None:
    """Raises ConfigError if a directory to write holds anything but what a killed command left of its own."""
    if directory.exists() and any(not path.name.startswith(TEMPORARY) for path in directory.iterdir()):
        raise ConfigError(f"{directory} is not empty; name another directory, or empty it")


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
