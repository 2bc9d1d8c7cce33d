"""Figures of pictures that not every setting has, and of codecs that were not run: nothing is mixed unsaid."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from codling.cli.main import app
from codling.errors import CodlingError, RateError
from codling.evaluation import runner
from codling.evaluation.report import _bd_table, _table, build, rate_to_show
from codling.evaluation.runner import Results
from codling.evaluation.summary import BdRateError, Interval, Point, bd_rate, bd_rates, summarise
from tests.conftest import noise_picture


def row(curve: str, picture: str, bpp: float, **metrics: float) -> dict[str, Any]:
    """A measurement of a picture of 100 x 100 px."""
    size = {"width": 100, "height": 100, "bytes": round(bpp * 1250), "bpp": bpp}
    return {"setting": f"{curve}:{bpp:g}", "curve": curve, "picture": picture, "metrics": metrics, "key": {}, **size}


def curve_of(name: str, scale: float, pictures: str = "012", shift: float = 0.0) -> list[dict[str, Any]]:
    """Three settings; PSNR is 30 dB at .1 bpp, 6 dB more at twice the rate, and more in later pictures."""
    qualities = [(scale * rate, 30 + 20 * np.log10(rate / 0.1) + shift) for rate in (0.1, 0.2, 0.4)]
    return [
        row(name, picture, rate, psnr=float(quality + 5 * int(picture)))
        for rate, quality in qualities
        for picture in pictures
    ]


def published(curve: str, *points: tuple[float, float]) -> list[Point]:
    return [
        Point(f"{curve} at {bpp:g} bpp", curve, 0, 0, Interval(bpp, bpp, bpp), {"psnr": Interval(db, db, db)}, {}, "x")
        for bpp, db in points
    ]


def cells(results: Results, points: list[Point], metrics: list[str]) -> dict[str, list[str]]:
    """The table of BD rates against `a` as text."""
    table = _bd_table(results, points, metrics, "a").split("</tr>")[1:-1]
    rows = [line.replace("<tr><td>", "").removesuffix("</td>").split("</td><td>") for line in table]
    return {curve: values for curve, *values in rows}


def test_bd_rates_are_of_pictures_that_all_settings_have() -> None:
    """A setting that failed on the picture of the best quality is not taken for a bad one."""
    rows = [*curve_of("a", 1), *curve_of("b", 0.8)]
    whole = bd_rates(Results(rows, {}, []), "a", "b", "psnr")
    assert (whole["common"], whole["pictures"]) == (3, 3)
    assert whole["of mean curves"] == pytest.approx(-20)
    del rows[-1]  # of "b", the last setting of picture 2
    for reference, tested, expected in (("a", "b", -20), ("b", "a", 25)):
        rates = bd_rates(Results(rows, {}, []), reference, tested, "psnr")
        assert rates["common"] == 2
        assert rates["of mean curves"] == rates["mean of pictures"] == pytest.approx(expected)
    results = Results(rows, {}, [])
    assert cells(results, summarise(results), ["psnr"])["b"] == ["-20.0% / -20.0% (2 of 3 pictures)"]


def test_a_published_curve_has_the_rate_of_the_mean_curves() -> None:
    results = Results(curve_of("a", 1), {}, [])
    theirs = published("VTM", (0.05, 35.0), (0.2, 47.041199826559))
    rates = bd_rates(results, "a", "VTM", "psnr", published=theirs)
    assert rates["of mean curves"] == pytest.approx(-50)
    assert np.isnan(rates["mean of pictures"])
    assert cells(results, [*summarise(results), *theirs], ["psnr"])["VTM"] == ["-50.0% / -"]
    assert bd_rates(results, "VTM", "a", "psnr", published=theirs)["of mean curves"] == pytest.approx(100)


def test_the_reason_why_there_is_no_bd_rate_is_printed() -> None:
    rows = [
        *curve_of("a", 1),
        *curve_of("far", 1, shift=90),
        *curve_of("other", 1)[:3],
        *(row("flat", "0", bpp, psnr=33.0) for bpp in (0.1, 0.2)),
        *curve_of("apart", 1, pictures="3"),
    ]
    results = Results(rows, {}, [])
    found = cells(results, [*summarise(results), *published("VTM", (0.05, 35.0))], ["psnr", "swd"])
    assert {curve: values[0] for curve, values in found.items()} == {
        "far": "no overlap",
        "other": "one setting only: other",
        "flat": "equal or infinite qualities",
        "apart": "no picture in common",
        "VTM": "one setting only: VTM",
    }
    assert {values[1] for values in found.values()} == {"not measured: a"}
    with pytest.raises(BdRateError, match="needs two or more settings"):
        bd_rates(results, "a", "other", "psnr")
    with pytest.raises(RateError, match="finite"):
        bd_rate([(1, 1), (2, np.inf)], [(1, 1), (2, 2)])


def test_the_table_says_of_how_many_pictures_a_setting_is_where_that_differs() -> None:
    whole = Results([*curve_of("a", 1), *curve_of("b", 0.8)], {}, [])
    assert "<th>pictures</th>" not in _table(summarise(whole), ["psnr"], 3)
    # As many of each, but not the same.
    apart = Results([*curve_of("a", 1, pictures="01"), *curve_of("b", 0.8, pictures="12")], {}, [])
    table = _table([*summarise(apart), *published("VTM", (0.05, 35.0))], ["psnr"], 3)
    assert "<th>setting</th><th>pictures</th><th>bytes a picture</th>" in table
    assert "<td>a:0.1</td><td>2</td><td>125</td>" in table
    assert "<td>VTM at 0.05 bpp</td><td>-</td><td>-</td>" in table


def test_rates_to_show_are_measured_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results([*curve_of("a", 1), *curve_of("b", 3.2)], {}, [])
    assert rate_to_show(summarise(results)) == pytest.approx(0.4)  # near the .32 of "b", and none else is
    for name in "012":
        Image.fromarray(noise_picture(20, 20)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(runner, "run", lambda *_, **__: results)
    arguments = ["eval", "--images", str(tmp_path), "--codec", "webp:quality=1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert f"`codling report {tmp_path / 'out'} --images {tmp_path} --bpp 0.4` draws them" in done.output
    with pytest.raises(CodlingError, match=r"near 9 bpp; .* with --bpp, its settings have 0.1, 0.2, 0.32, 0.4, 0.64"):
        build(
            results, summarise(results), tmp_path, tmp_path, budgets=(9,), pictures=("0",), reference=None, title="",
            machine={},
        )  # fmt: skip
