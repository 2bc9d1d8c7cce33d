"""`codling train`: train a model from a recipe."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from codling.configuration import override, suggest, to_dict
from codling.errors import ConfigError

Precision = Literal["float32", "float16", "int8"]


def command(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, for example cod-xs.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory of the run. Default: runs/RECIPE.", show_default=False),
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, for example data=DIR. Repeatable.", show_default=False)
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop, saved, after this long.", show_default=False)] = None,
    export: Annotated[Precision, typer.Option(help="Precision of the exported weights.")] = "float16",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the whole configuration and stop.")] = False,
) -> None:
    """Train a model; run again to continue. The result, with averaged weights and fitted tables, is OUTPUT/model."""
    from codling.training.recipes import RECIPES

    if recipe not in RECIPES:
        raise ConfigError(f"unknown recipe {recipe!r}{suggest(recipe, RECIPES)}")
    config = override(RECIPES[recipe], set or [])
    if dry_run:
        print(json.dumps(to_dict(config), indent=2))
        return

    import torch

    from codling.training.export import export_run
    from codling.training.loop import train

    directory = output or Path("runs") / recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = train(config, directory, device=device, max_minutes=max_minutes)
    manifest = export_run(run, directory / "model", precision=export)
    print(f"step {run.step} of {config.steps}; {directory / 'model'} loads with codling.load ({manifest.kind})")
