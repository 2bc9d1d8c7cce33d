"""The training loop: one process, exact resume from one file, a stop that loses nothing."""

import csv
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codling.training.cod_run import CoDRun
from codling.training.data import load_pictures, training_batch
from codling.training.denoiser_run import DenoiserRun
from codling.training.recipes import DenoiserTraining, RunConfig, TrainingConfig
from codling.training.run import Run

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"


def new_run(config: RunConfig, device: torch.device) -> Run[Any]:
    """The run of a configuration, at step 0."""
    if isinstance(config, DenoiserTraining):
        return DenoiserRun(config, device)
    assert isinstance(config, TrainingConfig)
    return CoDRun(config, device)


def train(
    config: RunConfig,
    directory: Path,
    *,
    device: torch.device,
    max_minutes: float | None = None,
    report: Callable[[str], None] = print,
) -> Run[Any]:
    """Train, or continue, the run in `directory` until its last step, `max_minutes`, or a termination signal.

    The directory holds `checkpoint.pt` (everything) and `log.csv` (terms, rate, validation PSNR).
    """
    directory.mkdir(parents=True, exist_ok=True)
    run = new_run(config, device)
    if (directory / CHECKPOINT).exists():
        run.restore(directory / CHECKPOINT)
        report(f"continuing {directory} at step {run.step}")
    data = load_pictures(Path(config.data), crop=config.crop, scales=config.scales)
    held_out = []
    if config.validation:
        held_out = load_pictures(Path(config.validation), crop=config.crop, scales=config.scales, limit=24).pictures
    if isinstance(run, DenoiserRun) and run.step == 0:
        run.fit_filter(spectrum_pictures(config, data.pictures))
    report(
        f"{len(data.pictures)} pictures, {data.broken} broken; "
        f"{sum(p.numel() for p in run.model.parameters()):,} parameters"
    )

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    previous = signal.signal(signal.SIGTERM, stop)
    begin, since, done = time.monotonic(), time.monotonic(), 0
    sums: dict[str, float] = {}

    def batch(step: int) -> Tensor:
        return training_batch(
            data.pictures, step, batch=config.batch, crop=config.crop, scales=config.scales, seed=config.seed
        )

    try:
        with ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(batch, run.step)
            while run.step < config.steps and not stopping:
                image = upcoming.result()
                upcoming = ahead.submit(batch, run.step + 1)
                for name, term in run.train_step(image).items():
                    sums[name] = sums.get(name, 0.0) + term
                done += 1
                if max_minutes is not None and time.monotonic() - begin > 60 * max_minutes:
                    stopping = True
                if run.step % config.log_every == 0:
                    rate = done * config.batch / (time.monotonic() - since)
                    row = {"step": run.step, "lr": run.learning_rate(), "pictures/s": rate}
                    _log(directory / LOG, row | {name: value / done for name, value in sums.items()}, report)
                    sums, done, since = {}, 0, time.monotonic()
                if run.step % config.checkpoint_every == 0:
                    run.save(directory / CHECKPOINT)
                    if held_out:
                        report(f"step {run.step}: {run.validate(held_out)}")
                    since = time.monotonic()
    finally:
        signal.signal(signal.SIGTERM, previous)
    run.save(directory / CHECKPOINT)
    return run


def spectrum_pictures(config: RunConfig, pictures: list[np.ndarray]) -> list[np.ndarray]:
    """What a denoiser's filter is fitted on: the validation pictures, whole, where there are any; they are larger."""
    if config.validation:
        # Crops of a pixel that may be shrunk a millionfold: no picture is too large for that, so none is shrunk.
        return load_pictures(Path(config.validation), crop=1, scales=(1e-6, 1.0), limit=100).pictures
    return pictures[:100]


def _log(path: Path, row: dict[str, float], report: Callable[[str], None]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)
    report("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
