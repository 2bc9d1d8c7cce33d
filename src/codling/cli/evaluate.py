"""`codling eval`: rate, distortion and realism of codecs on a folder of pictures."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codling import api
from codling.cli import options

if TYPE_CHECKING:
    from codling.evaluation.contenders import Setting

METRICS_HELP = (
    "psnr, ms-ssim, haarpsi, gmsd, swd, lpips-alex, lpips-vgg, dists, fid-64, fid-256. "
    "Repeatable; replaces the default, so name all."
)
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
    jobs: Annotated[int | None, typer.Option(min=1, help="Pictures at a time.", show_default=JOBS_DEFAULT)] = None,
    device: options.Device = "auto",
    time: Annotated[bool, typer.Option("--time", help="Then time each setting, alone and warm.")] = False,
) -> None:
    """Encode to real files, decode from the bytes alone, measure. Exits with status 1 if anything failed."""
    from codling.evaluation.contenders import parse_specs
    from codling.evaluation.metrics import DEFAULT_METRICS
    from codling.evaluation.report import rate_to_show
    from codling.evaluation.runner import pictures_in, run
    from codling.evaluation.summary import summarise, write

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
    points = summarise(results)
    write(results, points, out)
    print(f"results are in {out}/results.json, .csv and, with pyarrow, .parquet")
    if points:
        print(f"`codling report {out} --images {images} --bpp {rate_to_show(points):.3g}` draws them")
    all_timed = not time or _time(settings, pictures[:3])
    if results.failures or not all_timed:
        raise typer.Exit(1)


def _time(settings: "list[Setting]", pictures: list[Path]) -> bool:
    """Print the time of every setting, or why there is none; returns whether all have one."""
    from codling.evaluation.runner import described
    from codling.evaluation.timing import time_setting

    failed = False
    print(f"{'setting':<28}{'encode':>10}{'decode':>10}{'memory':>10}   (medians, 1 process, all cores)")
    for setting in settings:
        try:
            timing = time_setting(setting, pictures)
        except Exception as error:  # whatever a codec raises must not keep the others from being timed
            print(f"{setting.label:<28}failed: {described(error)}")
            failed = True
            continue
        print(
            f"{setting.label:<28}{timing.encode_seconds:>8.3f} s{timing.decode_seconds:>8.3f} s"
            f"{timing.peak_bytes / 1e9:>7.2f} GB   {timing.threads} threads"
        )
    return not failed
