"""Several stages by one command, in one directory, resumable in the middle of any of them."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from codling.errors import ConfigError
from codling.training import checkpoint
from codling.training.engine import Strategy
from codling.training.loop import CHECKPOINT, RUNS, train
from codling.training.recipes import RunConfig
from codling.training.run import Run
from codling.training.shards import find_shards


def train_stages(
    stages: Mapping[str, RunConfig],
    directory: Path,
    *,
    device: torch.device,
    max_minutes: float | None = None,
    report: Callable[[str], None] = print,
    begin_from: str | None = None,
    devices: int = 1,
    strategy: Strategy = "ddp",
) -> Run[Any]:
    """Train the stages one after the other, from the one that the checkpoint in `directory` is of.

    Each starts from the averaged weights of the one before, the first from those of the model `begin_from`, a name or
    a directory, if there is one and no checkpoint yet. Returns the run of the stage that was trained last.

    Raises ConfigError or ModelError before any of them trains where a later one could not begin.
    """
    names, begin = list(stages), time.monotonic()
    if not names:
        raise ConfigError("training: no stage to train")
    for config in stages.values():
        find_shards(config.data)  # a setting that cannot be right ends the run here, not after its first stage
    begun = stage_of(directory)
    first = names.index(begun) if begun in names else 0
    check_beginnings(stages[name] for name in names[first + 1 :])
    for number in range(first, len(names)):
        name = names[number]
        left = None if max_minutes is None else max_minutes - (time.monotonic() - begin) / 60
        run = train(
            stages[name], directory, device=device, max_minutes=left, report=report, stage=name, devices=devices,
            strategy=strategy, begin_from=None if number else begin_from,
        )  # fmt: skip
        if run.engine.main:
            report(f"stage {number + 1} of {len(names)}, {name}: step {run.step} of {run.config.steps}")
        if run.step < run.config.steps:
            break
    return run


def check_beginnings(stages: Iterable[RunConfig]) -> None:
    """Raises ConfigError or ModelError where a stage could not begin, as for want of weights that it loads.

    Each is made on a device that holds no values, so that nothing of it takes memory while others train.
    """
    for config in stages:
        # Of any other precision the engine would say that it uses it.
        RUNS[type(config)](replace(config, precision="float32"), torch.device("meta"))  # type: ignore[call-arg]


def stage_of(directory: Path) -> str | None:
    """The stage that a run's directory is in, None of a new one."""
    path = directory / CHECKPOINT
    if not path.exists():
        return None
    stage: str = checkpoint.read(path, device=torch.device("cpu"), lazily=True).get("stage", "")
    return stage
