"""`codling train`: train a model from a recipe."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from codling import api
from codling.configuration import to_dict
from codling.weights.catalogue import RUN_MODEL, Precision


def command(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, for example cod-xs.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory of the run. Default: runs/RECIPE.", show_default=False),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="key=value, for example data=DIR; STAGE:key=value for one stage only. Repeatable.",
            show_default=False,
        ),
    ] = None,
    begin_from: Annotated[
        str | None,
        typer.Option("--from", help="Model to begin from: a name, or a directory.", show_default=False),
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop, saved, after this long.", show_default=False)] = None,
    devices: Annotated[int, typer.Option(min=1, help="GPUs of this machine (or CPU processes) to share the work.")] = 1,
    strategy: Annotated[
        Literal["ddp", "fsdp"], typer.Option(help="What devices share: batches, or weights and optimiser too.")
    ] = "ddp",
    export: Annotated[Precision, typer.Option(help="Precision of the exported weights.")] = "float16",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the whole configuration and stop.")] = False,
) -> None:
    """Train a model; run again to continue. The result, with averaged weights and fitted tables, is OUTPUT/model."""
    from codling.training.recipes import override_stages, stages_of

    stages = override_stages(stages_of(recipe), set or [])
    if dry_run:
        print(json.dumps({name: to_dict(config) for name, config in stages.items()}, indent=2))
        return

    from codling.training.chain import train_stages
    from codling.training.export import export_run

    directory = output or Path("runs") / recipe
    device = api.torch_device("auto")
    run = train_stages(
        stages, directory, device=device, max_minutes=max_minutes, begin_from=begin_from, devices=devices,
        strategy=strategy,
    )  # fmt: skip
    if run.engine.main:
        print("writing the model; its tables are fitted on training pictures, which can take a minute")
    manifest = export_run(run, directory / RUN_MODEL, precision=export)
    if manifest is not None:
        print(f"{directory / RUN_MODEL} loads with codling.load ({manifest.kind})")
    if run.engine.main and run.step < run.config.steps:
        print("the training is not at its end: the same command goes on with it")
