"""Files that are written whole or not at all, and the pictures of a folder."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from codling.errors import CodlingError, ConfigError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2")
# How the names of temporary files and directories begin; only a kill leaves one behind.
TEMPORARY = ".codling-"


def write_whole(path: Path, data: bytes, *, force: bool) -> None:
    """Write a file under another name, then give it its own: it is there whole or not at all.

    Raises CodlingError if it exists, even if only since the call, and `force` is not set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
        if force:
            os.replace(temporary, path)
        else:
            _rename_new(temporary, path)
    except FileExistsError:
        raise CodlingError(f"{path} exists; it is overwritten only with --force") from None
    finally:
        temporary.unlink(missing_ok=True)


def _rename_new(source: Path, target: Path) -> None:
    """Give a file a name that none has: unlike a rename, fails with FileExistsError if one has appeared meanwhile."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        # This file system has no hard links (FAT, some network shares). An empty file keeps the name until the
        # rename; a kill between the two leaves it.
        target.open("xb").close()
        try:
            os.replace(source, target)
        except BaseException:
            target.unlink()
            raise


def files_under(folder: Path, suffixes: Iterable[str], *, subfolders: bool = True) -> list[Path]:
    """The files in a folder whose names end in one of these suffixes, in either case; sorted."""
    wanted = tuple(suffixes)
    found = folder.rglob("*") if subfolders else folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in wanted and _is_file(path))


def pictures_under(folder: Path, *, subfolders: bool = True) -> list[Path]:
    """The picture files in a folder, sorted. Raises ConfigError if there is none."""
    found = files_under(folder, PICTURE_SUFFIXES, subfolders=subfolders)
    if not found:
        raise ConfigError(
            f"no picture in {folder} (looked for {', '.join(PICTURE_SUFFIXES)}); name a folder that has some"
        )
    return found


def _is_file(path: Path) -> bool:
    """Also where that may not be known: who reads it then says why it cannot be read."""
    try:
        return path.is_file()
    except OSError:
        return True
