"""Nothing is overwritten without --force, and that is said before the work: here there is nothing to work with."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from codling import api
from codling.cli import demo
from codling.cli.main import app
from codling.errors import CodlingError, ConfigError
from tests.conftest import noise_picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray(noise_picture(20 if name == "a" else 36, 32)).save(tmp_path / "in" / name / "x.png")
        (tmp_path / "in" / name / "x.roe").write_bytes(b"no stream")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (("encode", "in/b/x.png", "-o", "out"), "out/x.roe"),
        (("decode", "in/b/x.roe", "-o", "out"), "out/x.png"),
        (("preview", "in/a/x.roe", "-o", "x.png"), "x.png"),
        (("report", "in", "--images", "in", "-o", "x.html"), "x.html"),
        (("demo", "--photos", "in", "-o", "out", "--steps", "1"), "out/b/x-1-step.png"),
        (("demo", "--photos", "in", "-o", "."), "sheet.png"),
        (("calibrate", "nothing", "--images", "in", "-o", "model", "--plot", "x.svg"), "x.svg"),
    ],
)
def test_existing_files_stop_a_command_before_its_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], target: str
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    for name in ("load", "load_for", "encode", "decode", "preview"):
        monkeypatch.setattr(api, name, work)
    monkeypatch.chdir(folder)
    path = folder / target
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"precious")
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, CodlingError), error
    assert f"{path.name} exists; nothing is overwritten without --force" in str(error)
    assert path.read_bytes() == b"precious"
    assert not list(folder.glob("out/a/*"))


def test_several_existing_files_are_counted(folder: Path) -> None:
    error = CliRunner().invoke(app, ["encode", str(folder / "in")]).exception
    assert "x.roe and 1 more exist; nothing is overwritten without --force" in str(error)


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_folder_that_was_interrupted_goes_on(folder: Path, tiny_directory: Path, command: str) -> None:
    runner, model = CliRunner(), ["--model", str(tiny_directory)]
    if command == "decode":
        assert runner.invoke(app, ["encode", str(folder / "in"), "--force", *model]).exit_code == 0
    suffix = "roe" if command == "encode" else "png"
    (folder / "out" / "a").mkdir(parents=True)
    (folder / "out" / "a" / f"x.{suffix}").write_bytes(b"precious")
    done = runner.invoke(app, [command, str(folder / "in"), "-o", str(folder / "out"), *model])
    assert done.exit_code == 1
    assert f"x.{suffix} exists; nothing is overwritten without --force" in done.stderr
    assert (folder / "out" / "a" / f"x.{suffix}").read_bytes() == b"precious"
    assert (folder / "out" / "b" / f"x.{suffix}").stat().st_size > 10


def test_pictures_are_no_names_for_streams(folder: Path) -> None:
    arguments = ["encode", str(folder / "in" / "a" / "x.png"), "--force", "-o", str(folder / "y.PNG")]
    with pytest.raises(ConfigError, match=r"y.PNG is the name of a picture; choose another, like y\.roe"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_plot_that_cannot_be_written_is_said_before_the_measurement(folder: Path) -> None:
    arguments = ["calibrate", "nothing", "--images", str(folder / "in"), "-o", str(folder / "m"), "--plot"]
    for name in ("x.xyz", "x"):
        error = CliRunner().invoke(app, [*arguments, str(folder / name)]).exception
        assert isinstance(error, ConfigError)
        assert f"cannot write a plot as {name}" in str(error)


def test_a_demonstration_keeps_subfolders_apart_and_runs_twice(
    folder: Path, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "BUDGETS", (60,))
    arguments = ["demo", "--photos", f"{folder}/in", "-o", f"{folder}/out.1", "-m", str(tiny_directory), "--steps", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception
    pictures = [Image.open(folder / "out.1" / name / "x-1-step.png") for name in ("a", "b")]
    assert [picture.size for picture in pictures] == [(32, 20), (32, 36)]
    assert {api.info((folder / "out.1" / name / "x.roe").read_bytes()).height for name in ("a", "b")} == {20, 36}
    assert np.asarray(Image.open(folder / "out.1" / "sheet.png")).std() > 0
    assert "nothing is overwritten without --force" in str(CliRunner().invoke(app, arguments).exception)
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
