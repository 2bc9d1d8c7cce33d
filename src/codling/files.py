"""Files that are written whole or not at all."""

import os
import tempfile
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
