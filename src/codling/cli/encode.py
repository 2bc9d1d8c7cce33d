"""`codling encode`: pictures to `.roe` files."""

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from codling import api
from codling.bitstream.container import MAX_PIXELS
from codling.cli import options
from codling.cli.files import STANDARD, Job, check_free, check_jobs, plan, run_jobs
from codling.errors import ConfigError
from codling.files import PICTURE_SUFFIXES


class Keep(StrEnum):
    alpha = "alpha"
    icc = "icc"
    exif = "exif"


def command(
    inputs: options.Inputs,
    output: options.Output = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Name or directory. Default: that of --codec; diffc-xs for a rate, oscar-s for a level, else cod-xs.",
            show_default=False,
        ),
    ] = None,
    codec: Annotated[
        str | None, typer.Option(help="cod, diffc or oscar. Default: the model's own.", show_default=False)
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(help="The file's length: this at most.", show_default=False)] = None,
    bpp: Annotated[float | None, typer.Option(help="The same, in bits a pixel.", show_default=False)] = None,
    psnr: Annotated[
        float | None, typer.Option(help="diffc: PSNR of the faithful picture in dB, at least.", show_default=False)
    ] = None,
    steps_to: Annotated[
        int | None, typer.Option(help="diffc: noise level to stop at, 1 to 1022.", show_default=False)
    ] = None,
    level: Annotated[
        int | None, typer.Option(help="oscar: entry of the rate table, 0 the lowest rate.", show_default=False)
    ] = None,
    keep: Annotated[
        list[Keep] | None,
        typer.Option(help="Carry along, losslessly: alpha, icc or exif. Repeatable.", show_default=False),
    ] = None,
    device: options.Device = "auto",
    max_pixels: options.MaxPixels = MAX_PIXELS,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Encode pictures."""
    jobs = plan(inputs, output, suffixes=PICTURE_SUFFIXES, new_suffix=".roe")
    for job in jobs:
        if job.target.suffix.lower() in PICTURE_SUFFIXES:
            raise ConfigError(f"{job.target} is the name of a picture; choose another, like {job.target.stem}.roe")
    check_jobs(jobs, force=force)
    asked = any(given is not None for given in (max_bytes, bpp, psnr, steps_to))
    chosen = model or api.default_model(codec=codec, rate_asked=asked, level_asked=level is not None)
    coder = api.load(chosen, codec=codec, device=device)

    def work(job: Job) -> dict[str, Any]:
        check_free([job.target], force=force)
        begin = time.perf_counter()
        data = api.encode(
            job.read() if job.source == STANDARD else job.source,
            model=coder,
            max_bytes=max_bytes,
            bpp=bpp,
            psnr=psnr,
            noise_level=steps_to,
            level=level,
            keep=[k.value for k in keep or []],
            max_pixels=max_pixels,
        )
        seconds = time.perf_counter() - begin
        job.write(data, force=force)
        said = api.info(data, max_pixels=max_pixels)
        return {
            "width": said.width,
            "height": said.height,
            "bytes": said.bytes,
            "bpp": said.bpp,
            "seconds": seconds,
        }

    def describe(row: dict[str, Any]) -> str:
        return f"{row['target']}: {row['bytes']} bytes, {row['bpp']:.4f} bpp, {row['seconds']:.2f} s"

    run_jobs(jobs, work, as_json=json, quiet=quiet, describe=describe)
