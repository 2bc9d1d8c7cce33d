"""`codling calibrate`: fit the tables that DiffC plans with, or that OSCAR codes its indices with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codling import api
from codling.cli import options
from codling.cli.files import check_free, check_no_model
from codling.configuration import override
from codling.errors import CodlingError
from codling.files import pictures_under
from codling.weights.catalogue import model_id, read_config

if TYPE_CHECKING:
    from torch import Tensor

    from codling.weights.store import Parts


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
    plot: Annotated[
        Path | None, typer.Option(help="Of OSCAR's times: picture to write, .png or .svg.", show_default=False)
    ] = None,
    precision: options.StoredPrecision = "float16",
    device: options.Device = "auto",
    force: options.Force = False,
) -> None:
    """Measure a model on pictures, and write it with the tables as a new model.

    For DiffC: errors by noise level and frequency; a model with a condition gets two tables, with it and without. For
    OSCAR: tables that code the indices of each level, except where networks that `codling weights predict` trained do,
    which stay; and it prints how near each level's latents come to the true ones, as a time between noise and data on
    the flow, as alpha-bar and, of models that have them, as timestep, beside what the model's network is told.
    """
    check_no_model(output, force=force)
    if plot:
        from codling.evaluation.pseudo_times import plot_format

        plot_format(plot)
        check_free([plot], force=force)
    paths = pictures_under(images)[:limit]

    from codling.bitstream.container import CodecId
    from codling.weights.registry import locate, own_codec
    from codling.weights.store import load_parts, round_weights, save_model

    name, directory = locate(model)
    parts = load_parts(directory, device=api.torch_device(device))
    round_weights(parts.model, precision)
    if own_codec(parts.model) is CodecId.OSCAR:
        if set:
            raise CodlingError(f"--set is for the DiffC settings, and model {name} is an OSCAR model; leave it out")
        parts = _oscar_parts(parts, paths, plot, force=force)
    else:
        if plot:
            raise CodlingError(f"--plot is for OSCAR models, and model {name} is none; leave it out")
        parts = _diffc_parts(parts, name, paths, set or [])
    save_model(output, parts, precision=precision)
    print(f"{output}: model {model_id(read_config(output)):06x}, calibrated on {len(paths)} pictures")


@dataclass(frozen=True)
class Pictures:
    """Images (1, 3, H, W) in [-1, 1], read anew each time they are gone through. what: that is done with them."""

    paths: list[Path]
    what: str

    def __iter__(self) -> "Iterator[Tensor]":
        import torch
        from rich.progress import track

        from codling.pictures import load_picture, to_image_array

        for path in track(self.paths, self.what, transient=True):
            yield torch.from_numpy(to_image_array(load_picture(path).rgb))[None]


def _diffc_parts(parts: "Parts", name: str, paths: list[Path], settings: list[str]) -> "Parts":
    """With error tables, of the model with its condition, if it can have one, and without."""
    from codling.codecs.calibration import calibrate
    from codling.codecs.diffc_stream import DiffCConfig
    from codling.weights.registry import backbone_of

    backbone = backbone_of(parts, name=name)
    diffc = override(parts.diffc or DiffCConfig(), settings)  # before the long part, as settings may be wrong
    tables = {}
    for conditional in (True, False) if backbone.conditional else (False,):
        images = Pictures(paths, "with condition" if conditional else "without condition")
        tables[conditional] = calibrate(backbone, images, conditional=conditional)
    return replace(parts, error_tables=tables, diffc=diffc)


def _oscar_parts(parts: "Parts", paths: list[Path], plot: Path | None, *, force: bool) -> "Parts":
    """With index tables for each level that has no network. Prints the pseudo-times, and plots them if asked."""
    from rich.console import Console
    from rich.table import Table

    from codling.bitstream.context_network import ContextNetwork
    from codling.bitstream.index_tables import fit_index_model
    from codling.codecs.pseudo_times import measure
    from codling.weights.registry import oscar_model

    model = oscar_model(parts.model)
    levels = model.levels
    measured = measure(model, Pictures(paths, "levels"))
    heads = ("level", "stride", "codebook", "cosine", "time", "told", "alpha-bar", "told", "timestep", "told")
    table = Table(*(heads if measured.schedule is not None else heads[:-2]), box=None, collapse_padding=True)
    for entry, found in zip(levels, measured.levels, strict=True):
        places = (found.measured, found.told)
        numbers = [f"{x:.3f}" for x in (found.cosine, *(p.time for p in places), *(p.share for p in places))]
        steps = [str(place.timestep) for place in places if place.timestep is not None]
        table.add_row(str(found.level), str(entry.stride), str(entry.codebook_size), *numbers, *steps)
    Console().print(table)
    if plot:
        from codling.evaluation.pseudo_times import plot as draw

        draw(measured, plot, force=force)
    # Networks code in fewer bits than tables do.
    kept = {n: one for n, one in enumerate(parts.index_models) if isinstance(one, ContextNetwork)}
    sizes = [entry.codebook_size for entry in levels]
    fitted = {n: fit_index_model(maps, sizes[n]) for n, maps in enumerate(measured.maps) if n not in kept}
    if kept:
        print(f"context networks stay at levels {_listed(kept)}; tables are fitted at {_listed(fitted)}")
    chosen = kept | fitted
    return replace(parts, index_models=tuple(chosen[n] for n in range(len(levels))))


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
