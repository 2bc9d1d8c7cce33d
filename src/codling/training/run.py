"""What every training run has: a model, its average, an optimiser, a step count, and one file to resume from."""

import math
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from codling.configuration import from_dict, to_dict
from codling.errors import ConfigError
from codling.training.averages import WeightAverage
from codling.training.recipes import RunConfig

C = TypeVar("C", bound=RunConfig)


class Run(ABC, Generic[C]):
    """Everything a training run changes. Subclasses say what a step's loss is, and which networks must stay the same.

    model: what is trained and averaged. head: networks that only training needs.
    """

    def __init__(self, config: C, device: torch.device, model: nn.Module, head: nn.Module):
        self.config, self.device, self.step = config, device, 0
        self.model: Any = model
        self.head = head
        self.average = WeightAverage(model, config.average)
        parameters = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )

    @abstractmethod
    def loss(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of images (B, 3, crop, crop) in [-1, 1], and its named terms for the log."""

    @abstractmethod
    def new_model(self) -> nn.Module:
        """A model like the one that is trained."""

    @abstractmethod
    def networks(self, config: C) -> object:
        """The part of a configuration that a checkpoint must share with the run it continues."""

    @abstractmethod
    def validate(self, pictures: list[np.ndarray]) -> str:
        """A line for the log: how good the averaged model is on pictures (H, W, 3) uint8."""

    def prepare(self, pictures: list[np.ndarray]) -> None:
        """What is fitted on pictures (H, W, 3) uint8 before the first step; nothing by default."""

    def after_step(self) -> None:
        """What is learned by other means than a gradient; nothing by default."""

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights, averages and optimiser."""
        return {}

    def restore_extra(self, state: dict[str, Any]) -> None:
        """The inverse of `extra_state`."""

    def learning_rate(self) -> float:
        """Warm-up, constant, linear decay."""
        config = self.config
        left = (config.steps - self.step) / max(1, config.decay_share * config.steps)
        return config.learning_rate * min(1.0, (self.step + 1) / config.warmup, max(left, 0.0))

    def train_step(self, image: Tensor) -> dict[str, float]:
        """One optimiser step on images (B, 3, crop, crop) in [-1, 1]; returns the unweighted terms."""
        image = image.to(self.device).to(memory_format=torch.channels_last)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        loss, terms = self.loss(image)
        if not math.isfinite(loss.item()):
            raise ConfigError(f"training diverged at step {self.step}: the loss is {loss.item()}; lower learning_rate")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.optimiser.param_groups[0]["params"], self.config.clip)
        self.optimiser.step()
        self.after_step()
        self.step += 1
        self.average.update(self.model, self.step)
        return {name: float(term.detach()) for name, term in terms.items()}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def save(self, path: Path) -> None:
        """Write the checkpoint beside its final place, then rename: a killed run never leaves half a file."""
        state = {
            "config": to_dict(self.config),
            "step": self.step,
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "average": self.average.values,
            "optimiser": self.optimiser.state_dict(),
            **self.extra_state(),
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def restore(self, path: Path) -> None:
        """Continue a saved run. Its networks must be the configured ones; schedule, data and decoding may differ."""
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        mismatch = ConfigError(f"{path} was trained with another model configuration; use another output directory")
        try:
            saved = from_dict(type(self.config), state["config"])
        except ConfigError as error:
            raise mismatch from error
        if self.networks(saved) != self.networks(self.config):
            raise mismatch
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.average.values = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.restore_extra(state)
        self.step = state["step"]

    def averaged_model(self) -> Any:
        """A copy of the model with the averaged weights, for decoding."""
        model = self.new_model().to(self.device)
        model.load_state_dict(self.model.state_dict())
        self.average.copy_to(model)
        return model.eval()
