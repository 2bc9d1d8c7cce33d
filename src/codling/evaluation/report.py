"""One self-contained page from an evaluation: curves with bands, a table, pictures at equal bytes under a slider."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from codling.errors import CodlingError, ModelError
from codling.evaluation.contenders import folder_of
from codling.evaluation.metrics import METRICS
from codling.evaluation.runner import Results
from codling.evaluation.summary import BdRateError, Point, bd_rates
from codling.pictures import load_picture

WEBP_QUALITY = 90
# A setting is shown at a budget if its mean rate is within this factor of it.
NEAR = 1.35
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")


def build(
    results: Results,
    points: list[Point],
    out: Path,
    images: Path,
    *,
    budgets: Sequence[float],
    pictures: Sequence[str],
    reference: str | None,
    title: str,
    machine: Mapping[str, str],
) -> str:
    """The page as HTML text.

    out: the evaluation's folder, images: the originals'. budgets: rates in bpp at which pictures are shown, each codec
    by its setting of the nearest mean rate. pictures: names of files to show. reference: the curve BD rates refer to.
    Raises ModelError without the packages of the extra `eval`.
    """
    if not points:
        raise CodlingError(f"{out} holds no measurement to report; run `codling eval` first")
    names = [name for name in METRICS if any(name in point.metrics for point in points)]
    unavailable = _unavailable(results)
    count = len({row["picture"] for row in results.rows})
    summary = f"{len(points)} settings on {count} pictures of {html.escape(images.name)}."
    if unavailable:
        summary += " Not available here: " + html.escape("; ".join(unavailable)) + "."
    if sources := sorted({f"{point.curve}: {point.source}" for point in points if point.source}):
        summary += " Published figures, not measured here: " + html.escape("; ".join(sources)) + "."
    if results.failures:
        summary += f" {len(results.failures)} measurements failed, see results.json."
    data = {
        "pictures": {name: _shown(name, results, points, out, images, budgets) for name in pictures},
    }
    template = Template(resources.files("codling.evaluation").joinpath("report.html").read_text())
    return template.substitute(
        title=html.escape(title),
        summary=summary,
        curves="".join(_curve(points, name) for name in names),
        table=_table(points, names, count),
        bd=_bd_table(results, points, names, reference) if reference else "",
        machine=html.escape(", ".join(f"{key} {value}" for key, value in machine.items())),
        data=json.dumps(data).replace("</", "<\\/"),
    )


def rate_to_show(points: list[Point]) -> float:
    """Of the settings' mean rates, one that has settings of as many curves as possible near it."""
    return max((p.bpp.mean for p in points), key=lambda rate: len({p.curve for p in points if _is_near(p, rate)}))


def _is_near(point: Point, budget: float) -> bool:
    return budget / NEAR <= point.bpp.mean <= budget * NEAR


def _curve(points: list[Point], metric: str) -> str:
    """Rate against a metric, one line a codec, as inline SVG."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ImportError as error:
        raise ModelError("reports need the package matplotlib: pip install 'codling[eval]'") from error

    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    axes = figure.add_subplot()
    for number, curve in enumerate(dict.fromkeys(point.curve for point in points)):
        measured = any(p.pictures for p in points if p.curve == curve)
        own = sorted((p for p in points if p.curve == curve and metric in p.metrics), key=lambda p: p.bpp.mean)
        if not own:
            continue
        rate = [point.bpp.mean for point in own]
        values = [point.metrics[metric] for point in own]
        colour = COLOURS[number % len(COLOURS)]
        style = "o-" if measured else "x--"
        axes.plot(rate, [v.mean for v in values], style, color=colour, label=curve, markersize=4, linewidth=1.4)
        if len(own) > 1:
            axes.fill_between(rate, [v.low for v in values], [v.high for v in values], color=colour, alpha=0.13)
        else:
            axes.errorbar(
                rate, values[0].mean, [[values[0].mean - values[0].low], [values[0].high - values[0].mean]],
                color=colour, alpha=0.4, capsize=3,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.2g}"))
    # Labels between powers of ten at 2, 3 and 5 only: more would run into each other.
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda rate, _: f"{rate:.2g}" if f"{rate:e}"[0] in "235" else ""))
    axes.set_xlabel("bits per pixel")
    better = "higher" if METRICS[metric].higher_is_better else "lower"
    axes.set_ylabel(f"{METRICS[metric].title} ({better} is better)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _table(points: list[Point], names: list[str], count: int) -> str:
    """A row a setting; of how many pictures it is only where that is not always all `count` of them."""
    sets = sorted({name for point in points for name in point.over_set})
    partial = any(0 < point.pictures < count for point in points)
    head = ["setting", *(["pictures"] if partial else []), "bytes a picture", "bpp"]
    head += [*(METRICS[name].title for name in names), *sets]
    rows = []
    for point in points:
        size = f"{point.bytes / point.pictures:.0f}" if point.pictures else "-"
        pictures = [str(point.pictures or "-")] if partial else []
        cells = [html.escape(point.setting), *pictures, size, f"{point.bpp.mean:.4f}"]
        cells += [_number(point.metrics[name].mean) if name in point.metrics else "-" for name in names]
        cells += [_number(point.over_set[name]) if name in point.over_set else "-" for name in sets]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>{''.join(rows)}</table>"


def _bd_table(results: Results, points: list[Point], names: list[str], reference: str) -> str:
    """BD rates of every other curve against the reference; where there is none, the reason."""
    curves = list(dict.fromkeys(point.curve for point in points))
    if reference not in curves:
        raise CodlingError(f"no curve {reference!r} to compare with; there are {', '.join(curves)}")
    rows = []
    for curve in curves:
        if curve == reference:
            continue
        cells = [curve, *(_bd_cell(results, points, reference, curve, name) for name in names)]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{html.escape(METRICS[name].title)}</th>" for name in names)
    note = (
        "Bits more (+) or fewer (-) at equal quality: of the mean curves / mean of the pictures' own, "
        "over the pictures that all settings of both curves have."
    )
    return (
        f"<h2>BD rate against {html.escape(reference)}</h2><p class='note'>{note}</p>"
        f"<table><tr><th>codec</th>{head}</tr>{''.join(rows)}</table>"
    )


def _bd_cell(results: Results, points: list[Point], reference: str, curve: str, metric: str) -> str:
    """BD rates in both averagings, with the number of pictures where those are not all, or why there are none."""
    try:
        rates = bd_rates(results, reference, curve, metric, published=[point for point in points if not point.pictures])
    except BdRateError as error:
        return error.reason
    own = f"{rates['mean of pictures']:+.1f}%" if rates["pictures"] else "-"
    count = len({row["picture"] for row in results.rows})
    partial = f" ({rates['common']} of {count} pictures)" if 0 < rates["common"] < count else ""
    return f"{rates['of mean curves']:+.1f}% / {own}{partial}"


def _shown(
    name: str, results: Results, points: list[Point], out: Path, images: Path, budgets: Sequence[float]
) -> dict[str, Any]:
    """A picture's versions, by budget and curve, as data URLs with captions."""
    rows = {row["setting"]: row for row in results.rows if row["picture"] == name}
    if not rows:
        raise CodlingError(f"no measurement of a picture {name!r}")
    shown: dict[str, dict[str, dict[str, str]]] = {}
    for budget in budgets:
        versions = {}
        for curve in dict.fromkeys(point.curve for point in points):
            own = [p for p in points if p.curve == curve and p.setting in rows]
            near = [p for p in own if _is_near(p, budget)]
            for point in _nearest(near, budget):
                row = rows[point.setting]
                decoded = out / "decoded" / folder_of(point.setting) / f"{Path(name).stem}.png"
                values = ", ".join(f"{METRICS[m].title} {_number(row['metrics'][m])}" for m in point.metrics)
                versions[point.setting] = {
                    "src": _data_url(decoded),
                    "caption": f"{point.setting}, {row['bytes']} bytes, {values}",
                }
        if versions:
            shown[f"near {budget:g} bpp"] = versions
    if not shown:
        rates = sorted({f"{point.bpp.mean:.3g}" for point in points if point.setting in rows}, key=float)
        raise CodlingError(
            f"no setting is near {', '.join(map(str, budgets))} bpp; choose rates to show {name} at with --bpp, "
            f"its settings have {', '.join(rates)}"
        )
    return {"original": _data_url(images / name), "budgets": shown}


def _nearest(points: list[Point], budget: float) -> list[Point]:
    """The points whose rate is nearest to the budget: several, where they decode the same files differently."""
    if not points:
        return []
    best = min(abs(np.log(point.bpp.mean / budget)) for point in points)
    return [point for point in points if abs(np.log(point.bpp.mean / budget)) <= best + 1e-9]


def _unavailable(results: Results) -> list[str]:
    values = [value for row in results.rows for value in row["metrics"].values()]
    values += [value for distances in results.sets.values() for value in distances.values()]
    reasons = [value for value in values if isinstance(value, str)]
    return sorted(set(reasons))


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"


def _data_url(path: Path) -> str:
    buffer = io.BytesIO()
    Image.fromarray(load_picture(path).rgb).save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
