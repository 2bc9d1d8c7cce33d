"""From measurements to figures: means with bootstrap intervals, rate-distortion curves, Bjontegaard deltas."""

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codling import __version__
from codling.errors import CodlingError, ConfigError, ModelError, RateError
from codling.evaluation.metrics import METRICS
from codling.evaluation.runner import Failure, Results
from codling.files import write_whole

RESAMPLES = 2000
CONFIDENCE = 0.95
PUBLISHED = ("curve", "bpp", "source")


class BdRateError(RateError):
    """There is no BD rate. `reason` is why, short enough for a table."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Interval:
    """A mean over pictures and its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """A setting over all its pictures. bytes: of all files together. metrics: the available ones only.

    Published points have no files: pictures and bytes are 0, and `source` says where the figures are from.
    """

    setting: str
    curve: str
    pictures: int
    bytes: int
    bpp: Interval
    metrics: Mapping[str, Interval]
    over_set: Mapping[str, float]
    source: str = ""


def interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean and percentile bootstrap over pictures, 95%."""
    data = np.asarray(values, float)
    drawn = np.random.default_rng(seed).integers(len(data), size=(RESAMPLES, len(data)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(data[drawn].mean(1), [tail, 100 - tail])
    return Interval(float(data.mean()), float(low), float(high))


def summarise(results: Results) -> list[Point]:
    """A point per setting, in the order they were run."""
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for row in results.rows:
        by_setting.setdefault(row["setting"], []).append(row)
    points = []
    for setting, rows in by_setting.items():
        names = [n for n in METRICS if all(isinstance(row["metrics"].get(n), float) for row in rows)]
        points.append(
            Point(
                setting,
                rows[0]["curve"],
                len(rows),
                sum(row["bytes"] for row in rows),
                interval([row["bpp"] for row in rows]),
                {name: interval([row["metrics"][name] for row in rows]) for name in names},
                {name: v for name, v in results.sets.get(setting, {}).items() if isinstance(v, float)},
            )
        )
    return points


def read_published(path: Path) -> list[Point]:
    """Published figures as points: a CSV with the columns `curve`, `bpp`, `source` and any of the metrics' names.

    Raises ConfigError on a column that is unknown or missing, or a cell that is no number.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in PUBLISHED] if rows else []
    missing = set(PUBLISHED) - set(rows[0] if rows else ())
    if missing or not names or any(name not in METRICS for name in names):
        raise ConfigError(
            f"{path}: wanted the columns {', '.join(PUBLISHED)} and one or more of {', '.join(METRICS)}, "
            f"got {', '.join(rows[0]) if rows else 'no rows'}"
        )
    points = []
    for number, row in enumerate(rows, 2):
        try:
            bpp, values = float(row["bpp"]), {name: float(row[name]) for name in names if row[name]}
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
        exact = {name: Interval(value, value, value) for name, value in values.items()}
        label = f"{row['curve']} at {bpp:g} bpp"
        points.append(Point(label, row["curve"], 0, 0, Interval(bpp, bpp, bpp), exact, {}, row["source"]))
    return points


def bd_rate(
    reference: Sequence[tuple[float, float]], tested: Sequence[tuple[float, float]], *, higher_is_better: bool = True
) -> float:
    """Bjontegaard delta rate in percent: how many more bits `tested` takes than `reference` at equal quality.

    Both are (rate, quality) points, at least two. The logarithm of the rate is interpolated over the quality by PCHIP
    and averaged over the qualities both reach. Raises BdRateError if they share none: nothing is extrapolated. Raises
    ModelError without scipy.
    """
    try:
        from scipy.interpolate import PchipInterpolator
    except ImportError as error:
        raise ModelError("BD rates need the package scipy: pip install 'codling[eval]'") from error

    sign = 1 if higher_is_better else -1
    curves = []
    for points in (reference, tested):
        ordered = sorted((sign * quality, np.log(rate)) for rate, quality in points)
        qualities = np.array([quality for quality, _ in ordered])
        if len(qualities) < 2 or not np.isfinite(qualities).all() or (np.diff(qualities) <= 0).any():
            raise BdRateError(
                "equal or infinite qualities",
                f"a BD rate needs two or more points of different, finite quality on each curve, got {points}",
            )
        curves.append(PchipInterpolator(qualities, [rate for _, rate in ordered], extrapolate=False))
    low = max(curve.x[0] for curve in curves)
    high = min(curve.x[-1] for curve in curves)
    if low >= high:
        raise BdRateError(
            "no overlap",
            f"the curves share no quality: {sign * curves[0].x[0]:.4g} to {sign * curves[0].x[-1]:.4g} against "
            f"{sign * curves[1].x[0]:.4g} to {sign * curves[1].x[-1]:.4g}; add settings until they overlap",
        )
    areas = [curve.integrate(low, high) for curve in curves]
    return float(100 * (np.exp((areas[1] - areas[0]) / (high - low)) - 1))


def bd_rates(
    results: Results, reference: str, tested: str, metric: str, *, published: Sequence[Point] = ()
) -> dict[str, float]:
    """The BD rate of two curves in both averagings: of the mean curves, and the mean of each picture's own.

    Means of different pictures do not compare: both are of the pictures, "common" their number, that all measured
    settings of both curves have. "pictures" says on how many of those the two overlapped; the others are left out of
    the second mean, which is NaN where none is left. Curves of `published` points have the first alone.
    Raises BdRateError if the mean curves have no BD rate.
    """
    settings = {curve: _by_setting(results, curve, metric) for curve in (reference, tested)}
    quoted = {
        curve: [(p.bpp.mean, p.metrics[metric].mean) for p in published if p.curve == curve and metric in p.metrics]
        for curve in settings
    }
    for curve in settings:
        count = len(settings[curve]) + len(quoted[curve])
        if count < 2:
            reason = f"{'one setting only' if count else 'not measured'}: {curve}"
            raise BdRateError(reason, f"a BD rate by {metric} needs two or more settings that have it; {reason}")
    measured = [*settings[reference], *settings[tested]]
    common = sorted(set.intersection(*map(set, measured))) if measured else []
    if measured and not common:
        raise BdRateError("no picture in common", f"no picture has {metric} at all settings of both")

    def means(curve: str, pictures: Sequence[str]) -> list[tuple[float, float]]:
        return [_mean([setting[picture] for picture in pictures]) for setting in settings[curve]]

    higher, own = METRICS[metric].higher_is_better, []
    for picture in common:
        with suppress(RateError):
            own.append(bd_rate(means(reference, [picture]), means(tested, [picture]), higher_is_better=higher))
    whole = [means(curve, common) + quoted[curve] for curve in (reference, tested)]
    return {
        "of mean curves": bd_rate(*whole, higher_is_better=higher),
        "mean of pictures": float(np.mean(own)) if own else float("nan"),
        "pictures": len(own),
        "common": len(common),
    }


def _by_setting(results: Results, curve: str, metric: str) -> list[dict[str, tuple[float, float]]]:
    """For each setting of a curve that has the metric at all, (bpp, quality) by picture."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for row in results.rows:
        if row["curve"] == curve and isinstance(row["metrics"].get(metric), float):
            found.setdefault(row["setting"], {})[row["picture"]] = (row["bpp"], row["metrics"][metric])
    return list(found.values())


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    rate, quality = np.mean(points, axis=0)
    return float(rate), float(quality)


def machine() -> dict[str, str]:
    """What the figures were measured with."""
    import PIL
    import torch

    return {
        "codling": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "numpy": np.__version__, "pillow": PIL.__version__, "system": platform.platform(),
    }  # fmt: skip


def write(results: Results, points: list[Point], out: Path) -> None:
    """`results.csv` (a row a file), `results.parquet` where pyarrow is installed, and `results.json` (everything).

    The tables have a column for every metric of any row; where a row has it not, the cell is empty.
    """
    flat = [
        {k: v for k, v in row.items() if k not in ("metrics", "key")}
        | {name: value if isinstance(value, float) else None for name, value in row["metrics"].items()}
        for row in results.rows
    ]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    document = {
        "machine": machine(),
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": 0},
        "sets": results.sets,
        "points": [_plain(point) for point in points],
        "failures": [vars(failure) for failure in results.failures],
        "rows": results.rows,
    }
    write_whole(out / "results.json", json.dumps(document, indent=1).encode(), force=True)
    if not flat:
        return
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(flat)
    write_whole(out / "results.csv", table.getvalue().encode(), force=True)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict.fromkeys(columns) | row for row in flat]), buffer)
    write_whole(out / "results.parquet", buffer.getvalue(), force=True)


def read(out: Path) -> Results:
    """What `write` wrote. Raises CodlingError if there is no `results.json`."""
    path = out / "results.json"
    if not path.exists():
        raise CodlingError(f"{path} is missing; run `codling eval ... --out {out}` first")
    document = json.loads(path.read_text())
    return Results(
        document["rows"],
        document["sets"],
        [Failure(**failure) for failure in document["failures"]],
    )


def _plain(point: Point) -> dict[str, Any]:
    return {
        "setting": point.setting, "curve": point.curve, "pictures": point.pictures, "bytes": point.bytes,
        "bpp": vars(point.bpp), "metrics": {name: vars(value) for name, value in point.metrics.items()},
        "over_set": dict(point.over_set),
    }  # fmt: skip
