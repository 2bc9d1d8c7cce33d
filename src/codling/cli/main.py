"""The `codling` program."""

import sys
from typing import Annotated

import typer

import codling
from codling.cli import bench, calibrate, decode, demo, encode, evaluate, info, models, preview, report, train, weights
from codling.errors import CodlingError

app = typer.Typer(
    name="codling",
    help="Pictures in a few hundred bytes, grown back by diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("encode")(encode.command)
app.command("decode")(decode.command)
app.command("info")(info.command)
app.command("preview")(preview.command)
app.add_typer(models.app, name="models")
app.command("calibrate")(calibrate.command)
app.command("train")(train.command)
app.add_typer(weights.app, name="weights")
app.command("bench")(bench.command)
app.command("eval")(evaluate.command)
app.command("report")(report.command)
app.command("demo")(demo.command)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(codling.__version__)
        raise typer.Exit


def run() -> None:
    """Entry point: errors that a user can mend are one line on stderr and exit status 1."""
    try:
        app()
    except CodlingError as error:
        print(f"codling: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        named = "" if error.filename is None else f": {error.filename}"
        print(f"codling: {error.strerror or error}{named}", file=sys.stderr)
        sys.exit(1)
