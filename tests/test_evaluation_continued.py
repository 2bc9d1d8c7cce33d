"""Evaluations that are continued with other metrics: rows differ in what they have."""

import csv
from pathlib import Path
from typing import Any

import pyarrow.parquet

from codling.evaluation import runner
from codling.evaluation.summary import Results, summarise, write


def row(picture: str, **metrics: float | str) -> dict[str, Any]:
    return {"setting": "a", "curve": "a", "picture": picture, "bytes": 9, "bpp": 0.1, "metrics": metrics, "key": {}}


# Pictures of three runs, each of which asked for PSNR, MS-SSIM and something else.
ROWS = [
    row("0", swd=2.0, psnr=30.0, **{"ms-ssim": "too small"}),
    row("1", psnr=31.0, **{"ms-ssim": 0.9}),
    row("2", psnr=32.0, gmsd=0.1, **{"ms-ssim": 0.9}),
]


def test_means_are_of_metrics_that_all_rows_have() -> None:
    for rows in (ROWS, ROWS[::-1]):
        assert set(runner._means(rows)) == {"psnr 31", "ms-ssim unavailable (too small)"}
        assert set(summarise(Results(rows, {}, []))[0].metrics) == {"psnr"}


def test_tables_have_every_metric_of_any_row(tmp_path: Path) -> None:
    results = Results(ROWS, {}, [])
    write(results, summarise(results), tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        cells = [(line["psnr"], line["swd"], line["gmsd"]) for line in csv.DictReader(file)]
    assert cells == [("30.0", "2.0", ""), ("31.0", "", ""), ("32.0", "", "0.1")]
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet")
    assert table["swd"].to_pylist() == [2.0, None, None]
    assert table["gmsd"].to_pylist() == [None, None, 0.1]
