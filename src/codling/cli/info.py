"""`codling info`: what a `.roe` file says of itself."""

import dataclasses
from typing import Any

from codling import api
from codling.bitstream.container import MAX_PIXELS
from codling.cli import options
from codling.cli.files import Job, plan, run_jobs


def command(inputs: options.Inputs, max_pixels: options.MaxPixels = MAX_PIXELS, json: options.Json = False) -> None:
    """Describe files without decoding them."""
    jobs = plan(inputs, None, suffixes=(".roe",), new_suffix=".roe")

    def work(job: Job) -> dict[str, Any]:
        return dataclasses.asdict(api.info(job.read(), max_pixels=max_pixels))

    def describe(row: dict[str, Any]) -> str:
        model = row["model"] or "not here"
        sections = "".join(f", {name} {size} bytes" for name, size in row["sections"].items())
        return (
            f"{row['source']}: {row['width']} x {row['height']}, {row['bytes']} bytes ({row['header_bytes']} header), "
            f"{row['bpp']:.4f} bpp, codec {row['codec']}, model {row['model_id']} ({model}){sections}"
        )

    run_jobs(jobs, work, as_json=json, quiet=False, describe=describe, writes=False)
