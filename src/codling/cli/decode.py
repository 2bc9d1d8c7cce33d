"""`codling decode`: `.roe` files to pictures."""

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image

from codling import api
from codling.bitstream.container import MAX_PIXELS, CodecId, unpack
from codling.cli import options
from codling.cli.files import STANDARD, Job, check_free, check_jobs, plan, run_jobs
from codling.errors import ConfigError

if TYPE_CHECKING:
    from codling.codecs.base import Codec


def command(
    inputs: options.Inputs,
    output: options.Output = None,
    steps: Annotated[
        int | None,
        typer.Option(help="1: faithful; more: sampled. Default: as the model does it best.", show_default=False),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="cod: its strength; 1 is none.", show_default=False)] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="cod, or diffc in steps: euler, heun, adams2 to adams4.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="cod: of the start noise; another, another picture.")] = 0,
    score_scale: Annotated[
        float, typer.Option(help="diffc in several steps: above 1 smoother, below 1 grainier.")
    ] = 1.0,
    finish: Annotated[
        str | None,
        typer.Option(help="diffc and cod: an OSCAR model like oscar-s adds texture, in one step.", show_default=False),
    ] = None,
    upto_bytes: Annotated[
        int | None, typer.Option(help="diffc: use only so much of the file's beginning.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the one the file names.", show_default=False)
    ] = None,
    format: Annotated[str, typer.Option(help="Suffix of pictures that -o does not name: png, jpg, webp ...")] = "png",
    device: options.Device = "auto",
    max_pixels: options.MaxPixels = MAX_PIXELS,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Decode files."""
    jobs = plan(inputs, output, suffixes=(".roe",), new_suffix=f".{format.lstrip('.')}")
    named = {job: Path(f"-.{format.lstrip('.')}") if job.target == STANDARD else job.target for job in jobs}
    for name in named.values():
        picture_format(name)
    check_jobs(jobs, force=force)
    codecs: dict[tuple[int, CodecId], Codec] = {}
    finisher = None if finish is None else api.load_finisher(finish, device=device)

    def work(job: Job) -> dict[str, Any]:
        check_free([job.target], force=force)
        data = job.read()
        stream = unpack(data, max_pixels=max_pixels)
        key = (stream.model_id, stream.codec)
        codecs[key] = codecs.get(key) or api.load_for(stream, model=model, device=device)
        begin = time.perf_counter()
        image = api.decode(
            data,
            model=codecs[key],
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            seed=seed,
            score_scale=score_scale,
            finish=finisher,
            upto_bytes=upto_bytes,
            max_pixels=max_pixels,
        )
        seconds = time.perf_counter() - begin
        job.write(picture_bytes(image, named[job]), force=force)
        used = len(data) if upto_bytes is None else min(upto_bytes, len(data))
        return {"width": image.width, "height": image.height, "bytes": used, "seconds": seconds}

    def describe(row: dict[str, Any]) -> str:
        return f"{row['target']}: {row['width']} x {row['height']} from {row['bytes']} bytes, {row['seconds']:.2f} s"

    run_jobs(jobs, work, as_json=json, quiet=quiet, describe=describe)


def picture_format(path: Path) -> str:
    """Pillow's format for a file name. Raises ConfigError for a suffix that it cannot write."""
    Image.init()
    name = Image.registered_extensions().get(path.suffix.lower())
    if name is None or name not in Image.SAVE:
        raise ConfigError(
            f"cannot write a picture as {path.name}: unknown suffix {path.suffix!r}; use .png, .jpg, .webp"
        )
    return name


def picture_bytes(image: Image.Image, path: Path) -> bytes:
    """The picture as a file of the format that the name asks for, with its profile and EXIF.

    Raises ConfigError where the format cannot hold it.
    """
    kind = picture_format(path)
    if kind == "JPEG" and image.mode == "RGBA":
        raise ConfigError("JPEG has no transparency; decode this file to .png or .webp")
    buffer = io.BytesIO()
    extras = {key: image.info[key] for key in ("icc_profile", "exif") if key in image.info}
    quality = {"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {}
    try:
        image.save(buffer, kind, **extras, **quality)
    except (ValueError, OSError, RuntimeError) as error:  # as Pillow's writers say that a size or mode is not theirs
        raise ConfigError(
            f"a picture of {image.width} x {image.height} px ({image.mode}) cannot be written as {kind}: {error}; "
            "decode this file to .png"
        ) from error
    return buffer.getvalue()
