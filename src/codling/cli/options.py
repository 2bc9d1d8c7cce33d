"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from codling.weights.catalogue import Precision

Inputs = Annotated[list[Path], typer.Argument(help="Files and folders, or - for standard input.", show_default=False)]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="File or folder, or - for standard output; by default beside each input.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="A name from `codling models`, or a model's directory.")]
StoredPrecision = Annotated[Precision, typer.Option(help="Of the stored weights: float32, float16 or int8.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite existing files.")]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]
MaxPixels = Annotated[int, typer.Option(help="Refuse pictures with more pixels.")]
