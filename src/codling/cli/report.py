"""`codling report`: the page of an evaluation."""

from pathlib import Path
from typing import Annotated

import typer

from codling.cli import options
from codling.cli.files import check_free
from codling.files import write_whole


def command(
    results: Annotated[Path, typer.Argument(help="Folder that `codling eval` wrote.", show_default=False)],
    images: Annotated[Path, typer.Option(help="Folder of the originals.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    bpp: Annotated[list[float] | None, typer.Option(help="Rates to show pictures at.", show_default="0.03")] = None,
    picture: Annotated[
        list[str] | None, typer.Option(help="File name of a picture to show.", show_default="the first three")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Curve that BD rates refer to, as avif/3.", show_default=False)
    ] = None,
    published: Annotated[
        list[Path] | None,
        typer.Option(help="CSV of published figures: curve, bpp, source, metrics. Repeatable.", show_default=False),
    ] = None,
    title: Annotated[str, typer.Option(help="Heading.")] = "Rate, distortion and realism",
    force: options.Force = False,
) -> None:
    """Draw an evaluation as one self-contained HTML page."""
    check_free([output], force=force)
    from codling.evaluation.report import build
    from codling.evaluation.summary import machine, read, read_published, summarise

    measured = read(results)
    names = sorted({row["picture"] for row in measured.rows})
    page = build(
        measured,
        [*summarise(measured), *(point for path in published or [] for point in read_published(path))],
        results,
        images,
        budgets=tuple(bpp or (0.03,)),
        pictures=tuple(picture or names[:3]),
        reference=reference,
        title=title,
        machine=machine(),
    )
    write_whole(output, page.encode(), force=force)
    print(f"{output}: {len(page) / 1e6:.1f} MB, opens in any browser without a network")
