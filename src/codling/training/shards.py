"""Where training pictures come from: a directory, tar shards on disk, or tar shards behind URLs (webdataset layout).

data=DIR                                          tar shards of a directory, else its picture files
data=/disk/photos-{000..013}.tar                  shards by name; braces hold a range or a list
data=https://example.org/photos-{000..013}.tar    the same over HTTP; s3://, gs://, hf:// by the fsspec package of each
"""

import re
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from codling.errors import ConfigError
from codling.files import PICTURE_SUFFIXES, files_under

# How often a shard behind a URL is tried; the pause before the next try is so many seconds times those that failed.
TRIES, PAUSE = 3, 2.0
BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Entry:
    """A picture file. data: its bytes, or empty where it, or the shard of that name, could not be read."""

    name: str
    data: bytes


def find_shards(data: str) -> list[str]:
    """The tar shards that a `data` setting names, none for a directory of plain pictures.

    Raises ConfigError on a directory that does not exist and on names that are no tar shards.
    """
    if not data:
        raise ConfigError(
            "training data: none named; set data=DIR with pictures or tar shards, or data=URL-{00..99}.tar"
        )
    if Path(data).is_dir():
        return [str(path) for path in sorted(Path(data).glob("*.tar"))]
    shards = expand_braces(data)
    if not all(shard.partition("?")[0].endswith(".tar") for shard in shards):
        raise ConfigError(
            f"training data: {data} is not a directory, nor does it name tar shards; set data=DIR with pictures or tar "
            "shards, or data=PATH-{00..99}.tar or data=URL-{00..99}.tar"
        )
    return shards


def expand_braces(pattern: str) -> list[str]:
    """`a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar; `{a,b}` -> a, b. Several braces make all combinations."""
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    inside = found[1]
    first, dots, last = inside.partition("..")
    if dots:
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ConfigError(f"training data: cannot read {{{inside}}} in {pattern}; write a range like {{000..013}}")
        options = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        options = inside.split(",")
    tails = expand_braces(pattern[found.end() :])
    return [pattern[: found.start()] + option + tail for option in options for tail in tails]


def entries(data: str) -> Iterator[Entry]:
    """Every picture file that a `data` setting names, in a fixed order."""
    shards = find_shards(data)
    for shard in shards:
        yield from shard_entries(shard)
    if not shards:
        yield from map(_file, files_under(Path(data), PICTURE_SUFFIXES))


def _file(path: Path) -> Entry:
    """A picture file, or an empty entry where it cannot be read."""
    try:
        return Entry(str(path), path.read_bytes())
    except OSError as error:
        return Entry(f"{path} ({type(error).__name__})", b"")


def shard_entries(shard: str) -> Iterator[Entry]:
    """The picture files of one shard, read as a stream; one empty entry in place of what cannot be read.

    A connection that breaks is tried again, and goes on behind what was read already.
    """
    done = 0
    for attempt in range(1, TRIES + 1):
        try:
            for entry in islice(_members(shard), done, None):
                yield entry
                done += 1
            return
        except ConfigError:
            raise
        except Exception as error:  # stores behind URLs raise the errors of their own clients
            failure = error
        if "://" not in shard or isinstance(failure, FileNotFoundError) or attempt == TRIES:
            break
        time.sleep(attempt * PAUSE)
    yield Entry(f"{shard} ({type(failure).__name__})", b"")


def _members(shard: str) -> Iterator[Entry]:
    with open_shard(shard) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            if Path(member.name).suffix.lower() in PICTURE_SUFFIXES and (content := tar.extractfile(member)):
                yield Entry(f"{shard}/{member.name}", content.read())


def open_shard(shard: str) -> IO[bytes]:
    """A shard on disk or behind a URL, for reading from its beginning."""
    if "://" not in shard:
        return Path(shard).open("rb")
    try:
        import fsspec

        opened: IO[bytes] = fsspec.open(shard, "rb").open()
        return opened
    except ImportError as error:
        raise ConfigError(f"training data: {shard} needs another package: {error}") from error
    except ValueError as error:
        raise ConfigError(f"training data: cannot open {shard}: {error}") from error
