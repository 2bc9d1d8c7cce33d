"""`codling eval`: rate, distortion and realism of codecs on a folder of pictures."""

import os
from pathlib import Path
from typing import Annotated

import typer

from codling import api
from codling.cli import options

METRICS_HELP = "psnr, ms-ssim, haarpsi, gmsd, swd, lpips-alex, lpips-vgg, dists, fid-64, fid-256. Repeatable."
# Each of two processes a job keeps a model, and a GPU has memory for few.
JOBS_DEFAULT = "one a core; 1 on a GPU"


def command(
    images: Annotated[Path, typer.Option(help="Folder of pictures.", show_default=False)],
    codec: Annotated[
        list[str],
        typer.Option(
            help="NAME, /FACTOR to shrink by, :KEY=V,V settings: avif/3:quality=0,20. Repeatable.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results; run again to continue.", show_default=False)],
    metric: Annotated[list[str] | None, typer.Option(help=METRICS_HELP, show_default="psnr, ms-ssim, swd")] = None,
    jobs: Annotated[int | None, typer.Option(help="Pictures at a time.", show_default=JOBS_DEFAULT)] = None,
    device: options.Device = "auto",
    time: Annotated[bool, typer.Option("--time", help="Then time each setting, alone and warm.")] = False,
) -> None:
    """Encode to real files, decode from the bytes alone, measure. Exits with status 1 if any picture failed."""
    from codling.evaluation.contenders import parse_specs
    from codling.evaluation.metrics import DEFAULT_METRICS
    from codling.evaluation.runner import pictures_in, run
    from codling.evaluation.summary import summarise, write
    from codling.evaluation.timing import time_setting

    default_jobs = 1 if api.torch_device(device).type == "cuda" else os.cpu_count() or 1
    settings = parse_specs(codec, device=device)
    pictures = pictures_in(images)
    results = run(
        pictures,
        settings,
        out,
        metrics=tuple(metric or DEFAULT_METRICS),
        jobs=jobs or default_jobs,
        report=print,
    )
    write(results, summarise(results), out)
    print(f"results are in {out}/results.json, .csv and, with pyarrow, .parquet")
    print(f"`codling report {out} --images {images}` draws them")
    if time:
        print(f"{'setting':<28}{'encode':>10}{'decode':>10}{'memory':>10}   (medians, 1 process, all cores)")
        for setting in settings:
            timing = time_setting(setting, pictures[:3])
            print(
                f"{setting.label:<28}{timing.encode_seconds:>8.3f} s{timing.decode_seconds:>8.3f} s"
                f"{timing.peak_bytes / 1e9:>7.2f} GB   {timing.threads} threads"
            )
    if results.failures:
        raise typer.Exit(1)
