"""`codling weights`: store a model's weights smaller, average them, cut them, learn to code its indices shorter."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import track

from codling.errors import ConfigError, RateError
from codling.files import pictures_under
from codling.weights.catalogue import WEIGHTS
from codling.weights.directories import check_empty
from codling.weights.splitting import DEFAULT_LIMIT, MEBIBYTE, join, split

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(
    help="Store weights in fewer bits or in parts, average them, or learn to code a model's indices shorter.",
    no_args_is_help=True,
)

Model = Annotated[str, typer.Argument(help="A name from `codling models`, or a model's directory.", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="Directory to write; new or empty.", show_default=False)]

# Photographs are shrunk to this many pixels on their short side, if it is longer, before they are learned from.
SHORT_SIDE = 512


@app.command("split")
def split_command(
    model: Model,
    output: Output,
    max_mib: Annotated[float, typer.Option(help="Largest part in MiB.")] = DEFAULT_LIMIT / MEBIBYTE,
) -> None:
    """Cut a model's weights into parts, with checksums."""
    from codling.weights.registry import locate

    parts = split(locate(model)[1], output, limit=int(max_mib * MEBIBYTE))
    print(f"{output}: {len(parts)} parts of at most {max(part.stat().st_size for part in parts):,} bytes")


@app.command("join")
def join_command(
    parts: Annotated[Path, typer.Argument(help="Directory that `split` wrote.", show_default=False)], output: Output
) -> None:
    """Put the parts of a model together, checked."""
    join(parts, output)
    print(f"{output}: use it with --model {output}")


@app.command("pack")
def pack_command(
    model: Model,
    output: Output,
    precision: Annotated[Literal["float16", "int8"], typer.Option(help="How weights are stored.")] = "int8",
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures to measure the loss in PSNR on.", show_default=False)
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="Budget a picture, for models of any rate.", show_default=False)
    ] = None,
) -> None:
    """Store a model in fewer bits, and say what that costs."""
    import torch

    from codling.weights.registry import locate
    from codling.weights.store import load_parts, save_model

    check_empty(output)
    pictures = [] if images is None else pictures_under(images)
    directory = locate(model)[1]
    save_model(output, load_parts(directory, device=torch.device("cpu")), precision=precision)
    sizes = [(place / WEIGHTS).stat().st_size for place in (directory, output)]
    print(f"{output}: {sizes[1]:,} bytes, were {sizes[0]:,}")
    if pictures:
        before, after = (mean_psnr(place, pictures, max_bytes=max_bytes) for place in (directory, output))
        print(f"PSNR {before:.3f} dB before, {after:.3f} dB after, on {images}")


@app.command("average")
def average_command(
    models: Annotated[
        list[str], typer.Argument(help="Models of one training: names, or directories.", show_default=False)
    ],
    output: Output,
    shares: Annotated[
        str | None, typer.Option(help="How much of each, as 0.5,0.3,0.2; equal by default.", show_default=False)
    ] = None,
    precision: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="How weights are stored.")
    ] = "float16",
) -> None:
    """Average the weights of several checkpoints' models; tables stay those of the first."""
    from codling.weights.averaging import average
    from codling.weights.registry import locate
    from codling.weights.store import save_model

    check_empty(output)
    try:
        numbers = [] if shares is None else [float(share) for share in shares.split(",")]
    except ValueError:
        raise ConfigError(f"--shares wants numbers with commas between them, as 0.5,0.3,0.2, got {shares!r}") from None
    save_model(output, average([locate(model)[1] for model in models], numbers), precision=precision)
    print(f"{output}: use it with --model {output}")


@app.command("predict")
def predict_command(
    model: Model,
    output: Output,
    data: Annotated[str, typer.Option(help="Photographs to learn from: a folder, or tar shards.", show_default=False)],
    validation: Annotated[
        str, typer.Option(help="Others, to keep what was where it is better; not those of a test.", show_default=False)
    ] = "",
    epochs: Annotated[float, typer.Option(help="How often each index is learned from.")] = 1.5,
    hidden: Annotated[int, typer.Option(help="Units of each network.")] = 96,
    times: Annotated[int, typer.Option(min=1, help="How often each photograph is seen, at a size of its own.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Photographs at most.", show_default=False)] = None,
    precision: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="How the other weights are stored.")
    ] = "float16",
) -> None:
    """Train the networks of integers that code a model's indices: shorter files of the same pictures."""
    import torch

    from codling.training.context_networks import ContextTraining
    from codling.training.data import load_pictures
    from codling.training.index_maps import index_maps, the_better, views, with_context_networks
    from codling.weights.registry import locate
    from codling.weights.store import load_parts, round_weights, save_model

    check_empty(output)
    config = ContextTraining(hidden=hidden, epochs=epochs)  # before the long part, as it may be wrong
    parts = load_parts(locate(model)[1], device=torch.device("cpu"))
    round_weights(parts.model, precision)

    def read(source: str) -> "list[np.ndarray]":
        return load_pictures(source, crop=SHORT_SIDE, scales=(1.0, SHORT_SIDE), limit=limit).pictures

    held_out = index_maps(parts, read(validation)) if validation else []
    photographs = read(data)
    total = len(photographs) * times
    print(f"reading the indices of {len(photographs)} photographs, {times} view(s) of each")
    seen = views(photographs, times, seed=0)
    maps = index_maps(parts, track(seen, "", total, console=Console(stderr=True), transient=True))

    def report(number: int, step: int, loss: float) -> None:
        print(f"map {number}: step {step}, {loss:.3f} bits an index")

    learned = with_context_networks(parts, maps, config, report=report)
    if validation:
        learned, before, after = the_better(parts, learned, held_out)
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            kept = ", so it stays as it was" if old <= new else ""
            print(f"stack {number}: {old:.3f} bits an index before, {new:.3f} after{kept}, on {validation}")
    save_model(output, learned, precision=precision)
    print(f"{output}: use it with --model {output}")


def mean_psnr(model: Path, pictures: list[Path], *, max_bytes: int | None) -> float:
    """Mean PSNR in dB of pictures as a model decodes them."""
    import numpy as np

    import codling
    from codling.evaluation.metrics import psnr
    from codling.pictures import load_picture

    codec, values = codling.load(model), []
    for path in pictures:
        try:
            data = codling.encode(path, model=codec, max_bytes=max_bytes)
        except RateError as error:
            raise RateError(f"{path}: {error}") from error
        values.append(psnr(load_picture(path).rgb, np.asarray(codling.decode(data, model=codec))))
    return float(np.mean(values))
