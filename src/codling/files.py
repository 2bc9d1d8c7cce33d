"""Files and directories that are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codling.errors import CodlingError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2")


def write_whole(path: Path, data: bytes, *, force: bool) -> None:
    """Write a file through a temporary one and a rename. Raises CodlingError if it exists and `force` is not set."""
    if path.exists() and not force:
        raise CodlingError(f"{path} exists; it is overwritten only with --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """An empty directory to write files into; it becomes `directory` at the end, or its files replace those there.

    After an error nothing is left of it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        yield temporary
        # Temporary directories and some libraries' files are for the owner alone.
        temporary.chmod(0o777 & ~_umask())
        for path in temporary.iterdir():
            path.chmod(0o666 & ~_umask())
        try:
            temporary.rename(directory)
        except OSError:
            for path in temporary.iterdir():
                os.replace(path, directory / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
