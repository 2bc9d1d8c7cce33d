"""The directory of a model as it is written: whole, or as near to it as a file system lets it be."""

import os
from pathlib import Path

import pytest

from codling.errors import ConfigError
from codling.weights import registry
from codling.weights.directories import check_empty, whole_directory
from codling.weights.store import Parts, save_model
from tests.conftest import tiny_model
from tests.training import CPU


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_new_directory_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    # What moves files one by one, with a moment in between at which they are no model.
    monkeypatch.setattr(os, "replace", killed)
    with whole_directory(tmp_path / "m") as new:
        for name in ("config.json", "model.safetensors"):
            (new / name).write_text(name)
        assert not (tmp_path / "m").exists()
    assert names(tmp_path / "m") == ["config.json", "model.safetensors"]
    assert names(tmp_path) == ["m"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_in_a_directory_that_exists_the_configuration_is_the_last_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    move = os.replace

    def watched(source: Path, target: Path) -> None:
        moved.append(target.name)
        move(source, target)

    monkeypatch.setattr(os, "replace", watched)
    (tmp_path / "README.md").write_text("mine")
    for seed in range(2):
        save_model(tmp_path, Parts(tiny_model(seed=seed)))
        registry.load(tmp_path, device=CPU)
    assert moved == ["model.safetensors", "config.json"] * 2
    assert names(tmp_path) == ["README.md", "config.json", "model.safetensors"]


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("mine")
    with pytest.raises(NotADirectoryError):
        save_model(tmp_path / "m", Parts(tiny_model()))
    assert names(tmp_path) == ["m"]


def test_what_a_killed_command_left_is_no_reason_to_refuse_the_same_command(tmp_path: Path) -> None:
    (tmp_path / ".codling-abc" / "new").mkdir(parents=True)
    check_empty(tmp_path)
    check_empty(tmp_path / "nothing")
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="is not empty; name another directory"):
        check_empty(tmp_path)
