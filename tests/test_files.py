"""Files written whole or not at all, and the pictures of a folder."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from codling.errors import CodlingError, ConfigError
from codling.files import PICTURE_SUFFIXES, files_under, pictures_under, write_whole


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(params=[True, False], ids=["hard links", "no hard links"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(os, "link", no_links)


@pytest.mark.usefixtures("file_system")
def test_existing_files_stay_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "x.roe"
    write_whole(path, b"first", force=False)
    with pytest.raises(CodlingError, match=r"x\.roe exists; it is overwritten only with --force"):
        write_whole(path, b"second", force=False)
    assert path.read_bytes() == b"first"
    write_whole(path, b"third", force=True)
    assert path.read_bytes() == b"third"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("file_system")
def test_of_many_that_write_one_file_at_once_one_does(tmp_path: Path) -> None:
    """Without a moment between looking and renaming, in which the others' files would be overwritten."""

    def write(number: int) -> int | None:
        try:
            write_whole(tmp_path / "x.roe", bytes([number]), force=False)
        except CodlingError:
            return None
        return number

    with ThreadPoolExecutor(8) as threads:
        done = [number for number in threads.map(write, range(64)) if number is not None]
    assert [*(tmp_path / "x.roe").read_bytes()] == done


@pytest.mark.usefixtures("file_system")
def test_a_file_that_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def late(source: Path, target: Path) -> None:
        target.write_bytes(b"precious")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(CodlingError, match="exists"):
        write_whole(tmp_path / "x.roe", b"data", force=False)
    assert (tmp_path / "x.roe").read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("force", [True, False])
def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "x.roe", b"data", force=force)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("file_system")
def test_the_umask_is_kept_and_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the whole process's: while one thread has changed it, another's files would be for everyone to write."""
    before = os.umask(0o027)

    def changed(_: int) -> None:
        raise AssertionError("the umask was changed")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", changed)
            write_whole(tmp_path / "x.roe", b"data", force=False)
            write_whole(tmp_path / "y.roe", b"data", force=True)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_the_pictures_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.png" / "deep").mkdir(parents=True)
    wanted = [tmp_path / "a.JPG", tmp_path / "b.png" / "deep" / "a.webp", tmp_path / "c.ppm"]
    for path in (*wanted, tmp_path / "a.roe", tmp_path / "png"):
        path.touch()
    assert pictures_under(tmp_path) == wanted
    assert pictures_under(tmp_path, subfolders=False) == [wanted[0], wanted[2]]
    assert files_under(tmp_path, [".roe"]) == [tmp_path / "a.roe"]
    with pytest.raises(ConfigError, match=r"no picture in .*b\.png \(looked for \.png, .*\); name a folder that has"):
        pictures_under(tmp_path / "b.png", subfolders=False)

    # What may not even be looked at is for who reads it to report.
    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert files_under(tmp_path, PICTURE_SUFFIXES, subfolders=False) == [wanted[0], tmp_path / "b.png", wanted[2]]
