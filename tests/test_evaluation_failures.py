"""What fails in an evaluation, or is missing for it, costs itself only and says what to do."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from codling.cli.main import app
from codling.errors import ConfigError, ModelError
from codling.evaluation import runner, timing
from codling.evaluation.bench import bench
from codling.evaluation.contenders import Setting, parse_spec
from codling.evaluation.metrics import measure
from codling.evaluation.report import build
from codling.evaluation.runner import WHOLE_SET, Failure, Results, run
from codling.evaluation.summary import bd_rate, summarise
from codling.evaluation.timing import Timing
from tests.conftest import noise_picture
from tests.test_evaluation_report import row


def die(*_: object) -> None:
    """What a worker does that the system kills, for want of memory for example."""
    os._exit(1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.fromarray(noise_picture(40, 48)).save(tmp_path / "images" / "a.png")
    return tmp_path / "images"


def test_a_killed_worker_leaves_what_was_measured(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "set_distances", die)
    settings, said = parse_spec("webp:quality=1,40"), []
    results = run([images / "a.png"], settings, tmp_path / "out", metrics=("psnr",), jobs=1, report=said.append)
    assert [row["setting"] for row in results.rows] == ["webp:quality=1"]
    failed = [("webp:quality=1", WHOLE_SET), ("webp:quality=40", "a.png")]
    assert [(failure.setting, failure.picture) for failure in results.failures] == failed
    assert all("BrokenProcessPool" in failure.message for failure in results.failures)
    assert "failed: webp:quality=1 on the whole set: BrokenProcessPool" in said[0]


def test_a_setting_that_cannot_be_timed_does_not_keep_others_from_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(setting: Setting, _: list[Path]) -> Timing:
        if "quality=1" in setting.label:
            raise ConfigError("no such quality")
        return Timing(1.5, 2.5, 1, 3_000_000_000)

    monkeypatch.setattr(runner, "run", lambda *_, **__: Results([], {}, []))
    monkeypatch.setattr(timing, "time_setting", timed)
    arguments = ["eval", "--images", str(images), "--codec", "webp:quality=1,40", "--out", str(tmp_path), "--time"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    lines = [line.split() for line in done.output.splitlines()]
    assert ["webp:quality=1", "failed:", "no", "such", "quality"] in lines
    assert ["webp:quality=40", "1.500", "s", "2.500", "s", "3.00", "GB", "1", "threads"] in lines


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_less_than_one_job_is_refused(images: Path, tmp_path: Path, jobs: str) -> None:
    arguments = ["eval", "--images", str(images), "--codec", "webp:quality=1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--jobs", jobs])
    assert done.exit_code == 2
    assert "--jobs" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["demo", "bench"])
def test_photographs_that_are_not_here_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """As outside a checkout, where the default is not."""
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(app, [command]).exception
    assert isinstance(error, ConfigError)
    assert "examples/photos is not here; name a folder of photographs with --photos" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_a_demonstration_that_cannot_begin_leaves_no_folder(images: Path, tmp_path: Path) -> None:
    arguments = ["demo", "--photos", str(images), "-o", str(tmp_path / "out"), "-m", "cod-sx"]
    assert isinstance(CliRunner().invoke(app, arguments).exception, ModelError)
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named_as_a_shell_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quoted: brackets alone mean something to some shells."""
    for module in ("matplotlib.figure", "scipy.interpolate", "pytorch_msssim", "pillow_jxl", "torchmetrics.image.fid"):
        monkeypatch.setitem(sys.modules, module, None)
    asked = r"pip install 'codling\[eval\]'"
    results = Results([row("a", "0", 0.1, psnr=30.0)], {}, [Failure("a", "1", "broken")])
    with pytest.raises(ModelError, match=f"matplotlib: {asked}"):
        build(
            results, summarise(results), tmp_path, tmp_path, budgets=(), pictures=(), reference=None, title="",
            machine={},
        )  # fmt: skip
    with pytest.raises(ModelError, match=f"scipy: {asked}"):
        bd_rate([(1, 1), (2, 2)], [(1, 1), (2, 2)])
    with pytest.raises(ConfigError, match=asked):
        parse_spec("jxl:quality=1")
    blank = np.zeros((161, 161, 3), np.uint8)
    assert "pip install 'codling[eval]'" in str(measure(blank, blank, ("ms-ssim",))["ms-ssim"])
    assert "pip install 'codling[eval]'" in str(runner.set_distances([], ("fid-64",))["fid-64"])


def test_the_speed_table_says_which_models_it_is_of() -> None:
    with pytest.raises(ConfigError, match="model linear is of codec diffc, wanted one of codec cod, like cod-xs"):
        next(bench("linear", []))
