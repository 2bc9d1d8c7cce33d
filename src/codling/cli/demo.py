"""`codling demo`: photographs to a few hundred bytes and back, with a sheet to look at."""

import io
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from codling import api
from codling.cli import options
from codling.cli.files import plan
from codling.files import PICTURE_SUFFIXES, write_whole
from codling.weights.catalogue import DEFAULT_MODEL, RATE_MODEL

# Bytes of the files on the sheet of budgets.
BUDGETS = (250, 500, 1000)


def command(
    photos: Annotated[Path, typer.Option(help="Folder of photographs.")] = Path("examples/photos"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("demo"),
    steps: Annotated[
        list[int] | None,
        typer.Option(help="Steps to decode with. Repeatable.", show_default="1, and the model's own way"),
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
) -> None:
    """Encode photographs, decode them again, and draw a comparison sheet."""
    from codling.evaluation.demo import demonstrate, demonstrate_budgets
    from codling.evaluation.sheet import comparison_sheet

    jobs = plan([photos], output, suffixes=PICTURE_SUFFIXES, new_suffix=".roe")
    codec = api.load(model, device=device)
    rows = []
    print(f"{'photograph':<12}{'bytes':>7}{'bpp':>9}{'encode':>9}   decoded with: PSNR, seconds")
    for result in demonstrate([job.source for job in jobs], codec, steps=tuple(steps or (1, None))):
        write_whole(output / f"{result.name}.roe", result.data, force=True)
        for way, (image, _, _) in result.decoded.items():
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            write_whole(output / f"{result.name}-{way.replace(' ', '-')}.png", buffer.getvalue(), force=True)
        decoded = "   ".join(f"{way}: {db:.2f} dB, {s:.2f} s" for way, (_, db, s) in result.decoded.items())
        seconds = f"{result.encode_seconds:.2f} s"
        print(f"{result.name:<12}{len(result.data):>7}{result.bpp:>9.4f}{seconds:>9}   {decoded}")
        rows.append(result.panels())
    write_sheet(comparison_sheet(rows), output / "sheet.png")
    progressive = api.load(RATE_MODEL, device=device)
    photographs = [job.source for job in jobs]
    budgets = list(demonstrate_budgets(photographs, progressive, budgets=BUDGETS))
    write_sheet(comparison_sheet(budgets), output / "budgets.png")
    print(f"files and pictures are in {output}/; look at sheet.png and, for {RATE_MODEL} by bytes, at budgets.png")


def write_sheet(sheet: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_whole(path, buffer.getvalue(), force=True)
