"""The command line as a user meets it: in processes of its own."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import codling
from codling.cli.files import STANDARD, Job, check_jobs, plan
from codling.cli.main import app
from codling.errors import CodlingError
from tests.conftest import noise_picture


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "codling", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200", **environment})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.fromarray(noise_picture(33, 47)).save(tmp_path / "in" / "a.png")
    Image.fromarray(noise_picture(20, 64)).save(tmp_path / "in" / "sub" / "b.jpg")
    return tmp_path


def test_folders_go_there_and_back(folder: Path, tiny_directory: Path) -> None:
    done = run("encode", folder / "in", "-o", folder / "coded", "--model", tiny_directory, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [Path(row["target"]).relative_to(folder / "coded").as_posix() for row in rows] == ["a.roe", "sub/b.roe"]
    for row in rows:
        assert row["bytes"] == Path(row["target"]).stat().st_size
        assert row["bpp"] == 8 * row["bytes"] / (row["width"] * row["height"])

    done = run("decode", folder / "coded", "-o", folder / "out", "--model", tiny_directory, "--steps", 1)
    assert done.returncode == 0, done.stderr
    assert Image.open(folder / "out" / "a.png").size == (47, 33)
    assert Image.open(folder / "out" / "sub" / "b.png").size == (64, 20)

    done = run("info", folder / "coded" / "a.roe", "--json", CODLING_MODELS=str(tiny_directory.parent))
    said = json.loads(done.stdout)[0]
    assert (said["codec"], said["model"], said["width"], said["height"]) == ("cod", "tiny", 47, 33)


def test_existing_files_are_kept_unless_forced(folder: Path, tiny_directory: Path) -> None:
    target = folder / "a.roe"
    target.write_bytes(b"precious")
    arguments = ("encode", folder / "in" / "a.png", "-o", target, "-m", tiny_directory)
    done = run(*arguments)
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert target.read_bytes() == b"precious"
    assert run(*arguments, "--force").returncode == 0
    assert codling.info(target.read_bytes()).width == 47


def test_one_bad_file_does_not_stop_the_others(folder: Path, tiny_directory: Path) -> None:
    (folder / "in" / "0-bad.png").write_bytes(b"not a picture")
    done = run("encode", folder / "in", "-o", folder / "coded", "-m", tiny_directory)
    assert done.returncode == 1
    assert "0-bad.png: not a picture" in done.stderr
    assert "1 of 3 files failed" in done.stderr
    assert sorted(p.name for p in (folder / "coded").rglob("*.roe")) == ["a.roe", "b.roe"]
    assert not [p for p in (folder / "coded").rglob("*") if p.is_file() and p.suffix != ".roe"]


def test_errors_name_the_remedy(folder: Path, tiny_directory: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "x.roe").write_bytes(b"\xb7r")
    blocked = folder / "file"
    blocked.write_text("")
    for arguments, message in [
        (("encode", folder / "in" / "a.png", "-m", "cod-sx"), "did you mean"),
        (("encode", folder / "empty", "-m", tiny_directory), "no file to work on"),
        (("encode", folder / "missing.png", "-m", tiny_directory), "No such file"),
        (("encode", folder / "in" / "a.png", "-m", tiny_directory, "-o", blocked / "x.roe"), str(blocked)),
        (("decode", folder / "x.roe"), "ends inside"),
        (("decode", folder / "x.roe", "-o", folder / "x.xyz"), "unknown suffix"),
        (("models", "import", "cod", "--config", blocked, "--weights", blocked, "-o", folder / "m"), "not a published"),
        (("train", "cod-xxs"), "did you mean cod-xs"),
        (("train", "cod-xs", "--set", "bacth=3"), "did you mean batch"),
        (("train", "cod-xs", "--set", f"data={folder / 'empty'}", "-o", folder / "run"), "no picture"),
    ]:
        done = run(*arguments)
        assert done.returncode == 1, (arguments, done.stdout, done.stderr)
        assert message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_several_models_in_one_decode(folder: Path, tiny_directory: Path) -> None:
    data = codling.encode(noise_picture(20, 20), model=tiny_directory)
    (folder / "x.roe").write_bytes(data)
    done = run("decode", folder / "x.roe", "-o", folder / "x.webp", CODLING_MODELS=str(tiny_directory.parent))
    assert done.returncode == 0, done.stderr
    assert Image.open(folder / "x.webp").size == (20, 20)
    done = run("decode", folder / "x.roe", "-o", folder / "y.webp")
    assert done.returncode == 1
    assert "which is not here" in done.stderr


def test_models_are_listed(tiny_directory: Path) -> None:
    done = run("models", "--json", CODLING_MODELS=str(tiny_directory.parent))
    names = {row["name"]: row["source"] for row in json.loads(done.stdout)}
    assert names["tiny"] == "local"
    assert names["cod-pixel"] == "hub"
    assert "cod-latent-64bit" in run("models").stdout


def test_version_and_dry_run() -> None:
    assert run("--version").stdout.strip() == codling.__version__
    config = json.loads(run("train", "cod-xs", "--set", "batch=3", "--dry-run").stdout)
    assert [stage["batch"] for stage in config.values()] == [3, 3, 3]


def test_importing_needs_no_torch() -> None:
    code = "import sys, codling; codling.info; codling.encode; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys; from codling.cli import main; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_inputs_may_not_share_an_output(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CodlingError, match=r"would both be written to .*a\.roe; do one of them on its own"):
        plan([tmp_path], None, suffixes=(".png", ".jpg"), new_suffix=".roe")
    with pytest.raises(CodlingError, match="name a folder"):
        plan([tmp_path], tmp_path / "x.roe", suffixes=(".png", ".jpg"), new_suffix=".roe")


def test_pipes(folder: Path, tiny_directory: Path) -> None:
    """Standard input to standard output has the bytes that files have, and nothing else."""

    def pipe(command: str, data: bytes, *arguments: object) -> subprocess.CompletedProcess[bytes]:
        words = [sys.executable, "-m", "codling", command, "-", *map(str, arguments)]
        return subprocess.run(words, input=data, capture_output=True)

    source, target = folder / "in" / "a.png", folder / "a.roe"
    assert run("encode", source, "-o", target, "-m", tiny_directory).returncode == 0
    coded = pipe("encode", source.read_bytes(), "-m", tiny_directory, "--json")
    assert coded.returncode == 0, coded.stderr
    assert coded.stdout == target.read_bytes()
    assert json.loads(coded.stderr)[0]["bytes"] == len(coded.stdout)
    decoded = pipe("decode", coded.stdout, "-m", tiny_directory, "--format", "webp", "--steps", 1)
    assert decoded.returncode == 0 and b"47 x 33" in decoded.stderr
    picture = Image.open(io.BytesIO(decoded.stdout))
    assert (picture.format, picture.size) == ("WEBP", (47, 33))
    # Files may be at one of the ends, and what is only said goes where it always does.
    assert pipe("decode", coded.stdout, "-m", tiny_directory, "-o", folder / "b.png").returncode == 0
    assert Image.open(folder / "b.png").size == (47, 33)
    assert b"47 x 33" in pipe("info", coded.stdout).stdout
    failed = pipe("decode", coded.stdout[:-1], "-m", tiny_directory)
    assert failed.returncode == 1 and failed.stdout == b"" and b"codling: -: " in failed.stderr


def test_standard_input_is_one_file_and_terminals_get_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for inputs, output in (([STANDARD, tmp_path], None), ([STANDARD], tmp_path)):
        with pytest.raises(CodlingError, match="name no other input"):
            plan(inputs, output, suffixes=(".png",), new_suffix=".roe")
    jobs = plan([STANDARD], None, suffixes=(".png",), new_suffix=".roe")
    assert jobs == [Job(STANDARD, STANDARD)]
    check_jobs(jobs, force=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(CodlingError, match="terminal"):
        check_jobs(jobs, force=False)
    check_jobs(plan([STANDARD], tmp_path / "x.roe", suffixes=(".png",), new_suffix=".roe"), force=False)


def test_demo_writes_its_files(tmp_path: Path, tiny_directory: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise_picture(48, 64)).save(tmp_path / "photos" / "p.png")
    done = run(
        "demo",
        "--photos",
        tmp_path / "photos",
        "-o",
        tmp_path / "out",
        "-m",
        tiny_directory,
        "--steps",
        1,
        "--steps",
        3,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "budgets.png",
        "p-1-step.png",
        "p-3-steps.png",
        "p.roe",
        "sheet.png",
    ]
    size = (tmp_path / "out" / "p.roe").stat().st_size
    assert f"{size}" in done.stdout
    assert np.asarray(Image.open(tmp_path / "out" / "sheet.png")).std() > 10


def test_any_rate_cut_and_preview(folder: Path) -> None:
    source, coded = folder / "in" / "a.png", folder / "a.roe"
    assert run("encode", source, "-o", coded, "-m", "linear", "--max-bytes", 150).returncode == 0
    assert coded.stat().st_size == 150
    for arguments in ((), ("--upto-bytes", 60), ("--steps", 4, "--score-scale", 1.2), ("--finish", "oscar-s")):
        done = run("decode", coded, "-o", folder / "a.png", "--force", *arguments)
        assert done.returncode == 0, done.stderr
        assert Image.open(folder / "a.png").size == (47, 33)
    done = run("preview", coded, "-o", folder / "a.webp")
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "a.webp") as animation:
        assert animation.n_frames > 2  # type: ignore[attr-defined]
    assert run("preview", coded, "-o", folder / "sheet.png", "--columns", 2).returncode == 0
    assert Image.open(folder / "sheet.png").width == 2 * 47
    for arguments, said in (
        (("preview", coded, "-o", folder / "a.pdf"), "unknown suffix"),
        (("decode", coded, "-o", folder / "b.png", "--upto-bytes", 5), "header takes 10 bytes"),
        (
            ("decode", coded, "-o", folder / "b.png", "--finish", "linear"),
            "model linear cannot finish what others have decoded",
        ),
        (("encode", source, "-o", folder / "b.roe", "-m", "linear", "--max-bytes", 8), "header of this picture's file"),
        (("encode", source, "-o", folder / "b.roe", "-m", "linear", "--codec", "cod"), "has no codec cod"),
        (("encode", source, "-o", folder / "b.roe", "-m", "linear", "--bpp", 1, "--psnr", 20), "one rate target"),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert said in done.stderr, done.stderr
    assert not (folder / "b.roe").exists()


def test_a_calibrated_model_has_any_rate(folder: Path, tiny_directory: Path) -> None:
    done = run("encode", folder / "in", "-o", folder / "out", "-m", tiny_directory, "--codec", "diffc")
    assert done.returncode == 1
    assert "codling calibrate" in done.stderr
    model = folder / "any-rate"
    arguments = ("calibrate", tiny_directory, "--images", folder / "in", "-o", model, "--set", "memory=8")
    said = CliRunner().invoke(app, [*map(str, arguments), "--device", "tpu"])
    assert 'device must be "auto", "cpu" or "cuda"' in str(said.exception)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert run(*arguments).returncode == 1
    for options in (("--max-bytes", 40), ("--max-bytes", 25), ("--steps-to", 700)):
        done = run(
            "encode", folder / "in" / "a.png", "-o", folder / "a.roe", "-m", model, "--codec", "diffc", "-f", *options
        )
        assert done.returncode == 0, done.stderr
        assert run("decode", folder / "a.roe", "-o", folder / "a.png", "-m", model, "-f").returncode == 0
    assert run("encode", folder / "in" / "a.png", "-o", folder / "b.roe", "-m", model).returncode == 0


@pytest.mark.parametrize("command", [*(one.name for one in app.registered_commands), "models"])
def test_every_command_explains_itself(command: str) -> None:
    """Help texts go through a markup parser, which brackets in them can break."""
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0, result.exception
    assert "--help" in result.output
