"""`codling demo`: photographs to a few hundred bytes and back, with a sheet to look at."""

import io
from pathlib import Path
from typing import Annotated

import typer

from codling import api
from codling.cli import options
from codling.cli.files import plan
from codling.files import PICTURE_SUFFIXES, write_whole
from codling.weights.catalogue import DEFAULT_MODEL


def command(
    photos: Annotated[Path, typer.Option(help="Folder of photographs.")] = Path("examples/photos"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("demo"),
    steps: Annotated[
        list[int] | None, typer.Option(help="Steps to decode with. Repeatable.", show_default="1, 4")
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
) -> None:
    """Encode photographs, decode them again, and draw a comparison sheet."""
    from codling.evaluation.demo import demonstrate
    from codling.evaluation.sheet import comparison_sheet

    jobs = plan([photos], output, suffixes=PICTURE_SUFFIXES, new_suffix=".roe")
    codec = api.load(model, device=device)
    rows = []
    print(f"{'photograph':<12}{'bytes':>7}{'bpp':>9}{'encode':>9}   steps: PSNR, seconds to decode")
    for result in demonstrate([job.source for job in jobs], codec, steps=tuple(steps or (1, 4))):
        write_whole(output / f"{result.name}.roe", result.data, force=True)
        for count, (image, _, _) in result.decoded.items():
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            write_whole(output / f"{result.name}-{count}.png", buffer.getvalue(), force=True)
        decoded = "   ".join(f"{n}: {db:.2f} dB, {s:.2f} s" for n, (_, db, s) in result.decoded.items())
        seconds = f"{result.encode_seconds:.2f} s"
        print(f"{result.name:<12}{len(result.data):>7}{result.bpp:>9.4f}{seconds:>9}   {decoded}")
        rows.append(result.panels())
    buffer = io.BytesIO()
    comparison_sheet(rows).save(buffer, "PNG")
    write_whole(output / "sheet.png", buffer.getvalue(), force=True)
    print(f"files, pictures and the comparison sheet are in {output}/; look at {output / 'sheet.png'}")
