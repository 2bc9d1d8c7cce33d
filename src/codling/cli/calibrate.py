"""`codling calibrate`: fit the tables that DiffC plans with."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from codling.cli import options
from codling.configuration import override
from codling.errors import CodlingError
from codling.files import PICTURE_SUFFIXES
from codling.weights.catalogue import CONFIG, find, model_id, read_config

Precision = Literal["float32", "float16", "int8"]


def command(
    model: Annotated[
        str, typer.Argument(help="A name from `codling models`, or a model's directory.", show_default=False)
    ],
    images: Annotated[Path, typer.Option(help="Folder of pictures, not those of a test.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory of the calibrated model.", show_default=False)
    ],
    limit: Annotated[int, typer.Option(help="Pictures to use at most.", min=1)] = 40,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="key=value of the DiffC settings, for example threshold=-16. Repeatable.", show_default=False
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of the stored weights: float32, float16 or int8.")] = "float16",
    device: options.Device = "auto",
    force: options.Force = False,
) -> None:
    """Measure a model's errors by noise level and frequency, and write it with the tables as a new model.

    A model with a condition gets two: with it, and without.
    """
    if (output / CONFIG).exists() and not force:
        raise CodlingError(f"{output} already holds a model; it is overwritten only with --force")
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)[:limit]
    if not paths:
        raise CodlingError(f"no picture in {images} (looked for {', '.join(PICTURE_SUFFIXES)})")

    import torch
    from rich.progress import track

    from codling.codecs.calibration import calibrate
    from codling.codecs.diffc_stream import DiffCConfig
    from codling.pictures import load_picture, to_image_array
    from codling.weights.registry import backbone_of
    from codling.weights.store import load_parts, save_model

    where = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
    directory = Path(model) if (Path(model) / CONFIG).is_file() else find(model).directory
    if directory is None:
        raise CodlingError(f"model {model} is not on this machine yet; use it once, so that it is fetched")
    parts = load_parts(directory, device=where)
    backbone = backbone_of(parts, name=model)
    tables = {}
    for conditional in (True, False) if backbone.conditional else (False,):
        loaded = (
            torch.from_numpy(to_image_array(load_picture(path).rgb))[None]
            for path in track(paths, "with condition" if conditional else "without condition", transient=True)
        )
        tables[conditional] = calibrate(backbone, loaded, conditional=conditional)
    diffc = override(parts.diffc or DiffCConfig(), set or [])
    save_model(output, replace(parts, error_tables=tables, diffc=diffc), precision=precision)
    print(f"{output}: model {model_id(read_config(output)):06x}, calibrated on {len(paths)} pictures")
