"""`codling demo`: photographs to a few hundred bytes and back, with a sheet to look at."""

import io
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from codling import api
from codling.cli import options
from codling.cli.files import Job, check_free, plan
from codling.errors import ConfigError
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
    force: options.Force = False,
) -> None:
    """Encode photographs, decode them again, and draw a comparison sheet."""
    from codling.evaluation.demo import demonstrate, demonstrate_budgets, way_of
    from codling.evaluation.sheet import comparison_sheet

    found, counts = photographs(photos), tuple(steps or (1, None))
    root = photos if photos.is_dir() else photos.parent
    jobs = [Job(path, output / path.relative_to(root).with_suffix(".roe")) for path in found]
    sheet, budget_sheet = output / "sheet.png", output / "budgets.png"
    pictures = [decoded_path(job, way_of(count)) for job in jobs for count in counts]
    check_free([*(job.target for job in jobs), *pictures, sheet, budget_sheet], force=force)
    codec = api.load(model, device=device)
    output.mkdir(parents=True, exist_ok=True)  # if that cannot be, it is said before the work
    rows = []
    print(f"{'photograph':<12}{'bytes':>7}{'bpp':>9}{'encode':>9}   decoded with: PSNR, seconds")
    for job, result in zip(jobs, demonstrate(found, codec, steps=counts), strict=True):
        write_whole(job.target, result.data, force=force)
        for way, (image, _, _) in result.decoded.items():
            write_png(image, decoded_path(job, way), force=force)
        decoded = "   ".join(f"{way}: {db:.2f} dB, {s:.2f} s" for way, (_, db, s) in result.decoded.items())
        seconds = f"{result.encode_seconds:.2f} s"
        print(f"{result.name:<12}{len(result.data):>7}{result.bpp:>9.4f}{seconds:>9}   {decoded}")
        rows.append(result.panels())
    write_png(comparison_sheet(rows), sheet, force=force)
    progressive = api.load(RATE_MODEL, device=device)
    budgets = list(demonstrate_budgets(found, progressive, budgets=BUDGETS))
    write_png(comparison_sheet(budgets), budget_sheet, force=force)
    print(f"files and pictures are in {output}/; look at sheet.png and, for {RATE_MODEL} by bytes, at budgets.png")


def photographs(folder: Path) -> list[Path]:
    """The photographs in a folder and its subfolders. Raises ConfigError if it is not there, CodlingError if empty."""
    if not folder.exists():
        raise ConfigError(
            f"{folder} is not here; name a folder of photographs with --photos (a checkout has examples/photos)"
        )
    return [job.source for job in plan([folder], None, suffixes=PICTURE_SUFFIXES, new_suffix=".roe")]


def decoded_path(job: Job, way: str) -> Path:
    """Where the picture lies that a photograph's file was decoded to, in a way like "1 step"."""
    return job.target.with_name(f"{job.target.stem}-{way.replace(' ', '-')}.png")


def write_png(picture: Image.Image, path: Path, *, force: bool) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_whole(path, buffer.getvalue(), force=force)
