"""The training loop: one process, exact resume from one file, a stop that loses nothing."""

import csv
import math
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codling.configuration import from_dict, to_dict
from codling.errors import ConfigError
from codling.models.cod import CoD
from codling.training.averages import CodebookAverage, WeightAverage
from codling.training.data import load_pictures, training_batch
from codling.training.recipes import TrainingConfig
from codling.training.terms import Draws, ReconstructionHead, check_weights, cod_step, total

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"


class Run:
    """Everything a training run changes: model, training heads, averages, optimiser and step count."""

    def __init__(self, config: TrainingConfig, device: torch.device):
        check_weights(config.weights)
        if config.model.space != "pixel":
            raise ConfigError("training works in pixel space so far; set model.space=pixel")
        torch.manual_seed(config.seed)
        self.config, self.device, self.step = config, device, 0
        self.model = CoD(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = config.model.transformer
        self.head = ReconstructionHead(
            shape.width, channels=shape.channels, patch=shape.patch, layers=config.reconstruction_layers
        ).to(device)
        if config.codebook == "average":
            self.embedding.requires_grad_(False)
        self.codebook = CodebookAverage(self.embedding)
        self.average = WeightAverage(self.model, config.average)
        parameters = [p for p in (*self.model.parameters(), *self.head.parameters()) if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )

    @property
    def embedding(self) -> Tensor:
        embedding: Tensor = self.model.condition_codec.quantiser.embedding
        return embedding

    def learning_rate(self) -> float:
        """Warm-up, constant, linear decay."""
        config = self.config
        left = (config.steps - self.step) / max(1, config.decay_share * config.steps)
        return config.learning_rate * min(1.0, (self.step + 1) / config.warmup, max(left, 0.0))

    def train_step(self, image: Tensor) -> dict[str, float]:
        """One optimiser step on images (B, 3, crop, crop) in [-1, 1]; returns the unweighted terms."""
        config = self.config
        image = image.to(self.device).to(memory_format=torch.channels_last)
        draws = Draws.make(
            image.shape,
            null_condition=config.null_condition,
            one_step_share=config.one_step_share,
            seed=config.seed,
            step=self.step,
            device=self.device,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        encode = config.freeze_encoder_from is None or self.step < config.freeze_encoder_from
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            result = cod_step(
                self.model,
                self.head,
                image,
                image,
                draws,
                quantise=self.step >= config.quantise_from,
                denoise=self.step >= config.denoise_from,
                encode=encode,
            )
        loss = total(result.terms, config.weights)
        if not math.isfinite(loss.item()):
            raise ConfigError(f"training diverged at step {self.step}: the loss is {loss.item()}; lower learning_rate")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.optimiser.param_groups[0]["params"], config.clip)
        self.optimiser.step()
        if config.codebook == "average" and encode and self.step >= config.quantise_from:
            features = result.features.movedim(1, -1)[result.counted].flatten(0, 2)
            self.codebook.update(
                self.embedding.data, features, result.indices[result.counted].flatten(), seed=self.step
            )
        self.step += 1
        self.average.update(self.model, self.step)
        return {name: float(term.detach()) for name, term in result.terms.items()}

    def save(self, path: Path) -> None:
        """Write the checkpoint beside its final place, then rename: a killed run never leaves half a file."""
        state = {
            "config": to_dict(self.config),
            "step": self.step,
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "average": self.average.values,
            "codebook": {"count": self.codebook.count, "sum": self.codebook.sum},
            "optimiser": self.optimiser.state_dict(),
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def restore(self, path: Path) -> None:
        """Continue a saved run. Its networks must be the configured ones; schedule, data and decoding may differ."""
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        saved, wanted = from_dict(TrainingConfig, state["config"]).model, self.config.model
        if (saved.condition, saved.transformer, saved.sigma_data) != (
            wanted.condition,
            wanted.transformer,
            wanted.sigma_data,
        ):
            raise ConfigError(f"{path} was trained with another model configuration; use another output directory")
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.average.values = state["average"]
        self.codebook.count, self.codebook.sum = state["codebook"]["count"], state["codebook"]["sum"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    def averaged_model(self) -> CoD:
        """A copy of the model with the averaged weights, for decoding."""
        model = CoD(self.config.model).to(self.device)
        model.load_state_dict(self.model.state_dict())
        self.average.copy_to(model)
        return model.eval()

    @torch.no_grad()
    def one_step_psnr(self, pictures: list[np.ndarray]) -> float:
        """Mean PSNR in dB of the averaged model's one-step pictures on centre crops; for the log only."""
        model, crop, scores = self.averaged_model(), self.config.crop, []
        for number, picture in enumerate(pictures):
            top, left = (picture.shape[0] - crop) // 2, (picture.shape[1] - crop) // 2
            square = picture[top : top + crop, left : left + crop]
            image = torch.from_numpy(square / np.float32(127.5) - 1).permute(2, 0, 1)[None].to(self.device)
            noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(number)).to(self.device)
            condition = model.condition_codec.decode(model.condition_codec.encode(image))
            decoded = (noise + model.velocity(noise, torch.zeros(1, device=self.device), condition)).clamp(-1, 1)
            scores.append(-10 * math.log10(float((decoded - image).square().mean()) / 4))
        return float(np.mean(scores))


def train(
    config: TrainingConfig,
    directory: Path,
    *,
    device: torch.device,
    max_minutes: float | None = None,
    report: Callable[[str], None] = print,
) -> Run:
    """Train, or continue, the run in `directory` until its last step, `max_minutes`, or a termination signal.

    The directory holds `checkpoint.pt` (everything) and `log.csv` (terms, rate, validation PSNR).
    """
    directory.mkdir(parents=True, exist_ok=True)
    run = Run(config, device)
    if (directory / CHECKPOINT).exists():
        run.restore(directory / CHECKPOINT)
        report(f"continuing {directory} at step {run.step}")
    data = load_pictures(Path(config.data), crop=config.crop)
    held_out = load_pictures(Path(config.validation), crop=config.crop, limit=24).pictures if config.validation else []
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
        return training_batch(data.pictures, step, batch=config.batch, crop=config.crop, seed=config.seed)

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
                        report(
                            f"step {run.step}: one-step PSNR {run.one_step_psnr(held_out):.2f} dB on validation crops"
                        )
                    since = time.monotonic()
    finally:
        signal.signal(signal.SIGTERM, previous)
    run.save(directory / CHECKPOINT)
    return run


def _log(path: Path, row: dict[str, float], report: Callable[[str], None]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)
    report("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
