"""`codling encode`: pictures to `.roe` files."""

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from codling import api
from codling.bitstream.container import MAX_PIXELS
from codling.cli import options
from codling.cli.files import Job, plan, run_jobs
from codling.files import PICTURE_SUFFIXES, write_whole
from codling.weights.catalogue import DEFAULT_MODEL


class Keep(StrEnum):
    alpha = "alpha"
    icc = "icc"
    exif = "exif"


def command(
    inputs: options.Inputs,
    output: options.Output = None,
    model: options.Model = DEFAULT_MODEL,
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
    codec = api.load(model, device=device)

    def work(job: Job) -> dict[str, Any]:
        begin = time.perf_counter()
        data = api.encode(job.source, model=codec, keep=[k.value for k in keep or []], max_pixels=max_pixels)
        seconds = time.perf_counter() - begin
        write_whole(job.target, data, force=force)
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
