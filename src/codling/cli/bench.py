"""`codling bench`: the speed table, with the machine it was measured on."""

import dataclasses
import itertools
import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from codling.cli import options
from codling.cli.demo import photographs
from codling.weights.catalogue import DEFAULT_MODEL, LEVEL_MODEL, RATE_MODEL


def command(
    photos: Annotated[Path, typer.Option(help="Folder of photographs, 768 x 512 or so.")] = Path("examples/photos"),
    model: options.Model = DEFAULT_MODEL,
    json: options.Json = False,
) -> None:
    """Measure speed, memory and overhead on this machine."""
    from codling.evaluation.bench import bench, bench_batch, bench_diffc, machine, round_trip

    paths = photographs(photos)
    rows = []
    if not json:
        print(machine())
    measured = (
        bench(model, paths), bench_diffc(RATE_MODEL, paths[0]), round_trip(LEVEL_MODEL, paths[0]),
        bench_batch(LEVEL_MODEL, paths[0]),
    )  # fmt: skip
    for row in itertools.chain.from_iterable(measured):
        rows.append(dataclasses.asdict(row))
        if not json:
            verdict = {True: "holds", False: "MISSED", None: ""}[row.holds]
            print(f"{row.what:<58} {row.measured:>22}   {row.target:<12} {verdict}")
    if json:
        print(json_module.dumps({"machine": machine(), "rows": rows}, indent=2))
