"""`codling preview`: how the picture of a progressive file grows, as an animation or a sheet."""

import io
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFont

from codling import api
from codling.bitstream.container import MAX_PIXELS
from codling.cli import options
from codling.cli.files import check_free
from codling.errors import ConfigError
from codling.files import write_whole

ANIMATIONS = {".webp": "WEBP", ".gif": "GIF", ".apng": "PNG"}
SHEETS = {".png": "PNG", ".jpg": "JPEG"}
LAST_FRAME_MS = 2000


def command(
    source: Annotated[Path, typer.Argument(help="A progressive .roe file.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help=".webp, .gif or .apng: an animation; .png or .jpg: a sheet.", show_default=False
        ),
    ],
    columns: Annotated[int, typer.Option(help="Pictures a row of a sheet.", min=1)] = 3,
    frame_ms: Annotated[int, typer.Option(help="Milliseconds a frame of an animation is shown.", min=20)] = 400,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the one the file names.", show_default=False)
    ] = None,
    device: options.Device = "auto",
    max_pixels: options.MaxPixels = MAX_PIXELS,
    force: options.Force = False,
) -> None:
    """Show what a progressive file is worth after each of its steps."""
    suffix = output.suffix.lower()
    if suffix not in ANIMATIONS and suffix not in SHEETS:
        known = ", ".join((*ANIMATIONS, *SHEETS))
        raise ConfigError(f"cannot write previews as {output.name}: unknown suffix {suffix!r}; use one of {known}")
    check_free([output], force=force)
    data = source.read_bytes()
    steps = list(api.preview(data, model=model, device=device, max_pixels=max_pixels))
    frames = [labelled(image, f"{used} bytes") for used, image in steps]
    buffer = io.BytesIO()
    if suffix in ANIMATIONS:
        durations = [frame_ms] * (len(frames) - 1) + [LAST_FRAME_MS]
        frames[0].save(buffer, ANIMATIONS[suffix], save_all=True, append_images=frames[1:], duration=durations, loop=0)
    else:
        sheet(frames, columns).save(buffer, SHEETS[suffix])
    write_whole(output, buffer.getvalue(), force=force)
    print(f"{output}: {len(frames)} pictures, from {steps[0][0]} to {steps[-1][0]} bytes")


def labelled(image: Image.Image, text: str) -> Image.Image:
    """The picture with a line of text below it."""
    size = max(11, image.width // 30)
    out = Image.new("RGB", (image.width, image.height + 2 * size), "white")
    out.paste(image.convert("RGB"))
    ImageDraw.Draw(out).text((size // 2, image.height + size // 3), text, "black", ImageFont.load_default(size))
    return out


def sheet(frames: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows."""
    width, height = frames[0].size
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    out = Image.new("RGB", (columns * width, rows * height), "white")
    for number, frame in enumerate(frames):
        out.paste(frame, (number % columns * width, number // columns * height))
    return out
