"""What every training run has: a model, its average, an optimiser, a step count, and one file to resume from."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from codling.configuration import differences, from_dict, to_dict
from codling.errors import ConfigError
from codling.training import checkpoint
from codling.training.averages import WeightAverage
from codling.training.engine import Engine, whole
from codling.training.recipes import RunConfig
from codling.training.schedule import rate_share

C = TypeVar("C", bound=RunConfig)
# Settings that an error names at most.
NAMED = 5


class LossModule(nn.Module):
    """A run's loss as a module's forward pass, which is what engines wrap."""

    def __init__(self, run: "Run[Any]"):
        super().__init__()
        self.model, self.head = run.model, run.head
        self._loss = run.loss

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self._loss(image)
        return loss, {name: term.detach() for name, term in terms.items()}


class Run(ABC, Generic[C]):
    """Everything a training run changes. Subclasses say what a step's loss is, and which networks must stay the same.

    model: what is trained and averaged. head: networks that only training needs. places: which places of the batch this
    process trains on; random draws are a function of seed, step and place. origin: name and id of the model that the
    run, or the first of its stages, began from, or "".
    shape: the settings of the model that its weights depend on, as opposed to those of decoding.
    """

    shape: ClassVar[tuple[str, ...]]

    def __init__(self, config: C, device: torch.device, model: nn.Module, head: nn.Module):
        self.config, self.device, self.step = config, device, 0
        self.model: Any = model
        self.head: Any = head
        self.engine = Engine(device, precision=config.precision)
        self.places = range(config.batch)
        self.origin = ""
        self._make_trainable(LossModule(self))

    def distribute(self, engine: Engine) -> None:
        """Share the steps with the other processes of an engine; before the first step."""
        self.engine, self.places = engine, engine.places(self.config.batch)
        self._make_trainable(engine.wrap(LossModule(self)))

    def _make_trainable(self, module: nn.Module) -> None:
        """What must be made anew when parameters are sharded: average and optimiser."""
        config = self.config
        self.module = module
        self.average = WeightAverage(self.model, config.average)
        parameters = [p for p in (*self.model.parameters(), *self.head.parameters()) if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )

    @abstractmethod
    def loss(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of images (B, 3, crop, crop) in [-1, 1] at `places`, and its named terms for the log."""

    @abstractmethod
    def new_model(self) -> nn.Module:
        """A model like the one that is trained."""

    def networks(self, config: Any) -> object:
        """The part of a configuration that a checkpoint must share with the run it continues."""
        return [getattr(config.model, name) for name in self.shape]

    @abstractmethod
    def validate(self, pictures: list[np.ndarray]) -> dict[str, float]:
        """How good the averaged model is on pictures (H, W, 3) uint8: numbers by name, for the log."""

    def samples(self, pictures: list[np.ndarray]) -> Sequence[Tensor]:
        """Columns of a sheet of what the averaged model makes of pictures, each (n, 3, H, W) in [-1, 1]; none here."""
        return ()

    def examine(self, pictures: list[np.ndarray], rows: int) -> tuple[dict[str, float], Sequence[Tensor]]:
        """Both of these: the scores of pictures, and a sheet of the first so many rows."""
        return self.validate(pictures), self.samples(pictures[:rows])

    def prepare(self, pictures: Callable[[], list[np.ndarray]]) -> None:
        """What is fitted before the first step, to pictures (H, W, 3) uint8 got by a call; nothing by default."""

    def after_step(self) -> None:
        """What is learned by other means than a gradient; nothing by default."""

    def compile(self) -> None:
        """Compile what takes the time of a step."""
        self.model.compile()

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights, averages and optimiser."""
        return {}

    def restore_extra(self, state: dict[str, Any]) -> None:
        """The inverse of `extra_state`, but for `restore_optimisers`."""

    def restore_optimisers(self, state: dict[str, Any]) -> None:
        """Restore further optimisers of `extra_state` and networks that only they train; `inherit` leaves these new."""

    @property
    def phase(self) -> Hashable:
        """What the coming step computes: steps of equal phases take the same operations."""
        return None

    def learning_rate(self) -> float:
        """Warm-up, constant, linear decay."""
        config = self.config
        share = rate_share(self.step, config.steps, warmup=config.warmup, decay_share=config.decay_share)
        return config.learning_rate * share

    def train_step(self, image: Tensor) -> dict[str, float]:
        """One optimiser step on images (B, 3, crop, crop) in [-1, 1]; returns the unweighted terms."""
        loss, terms = self.module(image.to(self.device).to(memory_format=torch.channels_last))
        self.descend(loss, self.optimiser)
        self.finish_step()
        return {name: float(term) for name, term in terms.items()}

    def descend(self, loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
        """One step of an optimiser down a loss, at the current learning rate, with its gradient clipped."""
        if self.engine.any(not math.isfinite(loss.item())):
            raise ConfigError(f"training diverged at step {self.step}: the loss is {loss.item()}; lower learning_rate")
        for group in optimiser.param_groups:
            group["lr"] = self.learning_rate()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
        optimiser.step()

    def finish_step(self) -> None:
        """What follows the optimisers: other learning, the count, the average."""
        self.after_step()
        self.step += 1
        self.average.update(self.model, self.step)

    def autocast(self) -> Any:
        """The context for networks; losses are best computed outside of it."""
        return self.engine.autocast()

    def save(self, path: Path, *, stage: str = "", source: dict[str, Any] | None = None) -> None:
        """Write the checkpoint, whole or not at all. stage: name of the stage. source: place in the data."""
        state = checkpoint.gathered(
            {
                "config": to_dict(self.config),
                "stage": stage,
                "step": self.step,
                "origin": self.origin,
                "model": self.model.state_dict(),
                "head": self.head.state_dict(),
                "average": self.average.values,
                "optimiser": self.optimiser.state_dict(),
                "source": source or {},
                **self.extra_state(),
            }
        )

        def write() -> None:
            if self.engine.main:
                checkpoint.write(path, state)

        self.engine.together(write)

    def restore(self, path: Path) -> None:
        """Continue a saved run. Its networks must be the configured ones; schedule, data and decoding may differ."""
        state = self._read(path)
        if checkpoint.shapes(state["head"]) != checkpoint.shapes(self.head.state_dict()):
            raise ConfigError(f"{path} was trained with another teacher or head; use another output directory")
        checkpoint.load_module(self.model, state["model"])
        checkpoint.load_module(self.head, state["head"])
        self.average.load(state["average"])
        checkpoint.load_optimiser(self.optimiser, state["optimiser"])
        self.restore_extra(state)
        self.restore_optimisers(state)
        self.step, self.origin = state["step"], state.get("origin", "")

    def inherit(self, path: Path) -> None:
        """Start from the averaged weights of the stage before; optimisers, average and step begin anew.

        So do parts of the head that the stage before did not have, such as those for another teacher.
        """
        state, head = self._read(path), self.head.state_dict()
        checkpoint.load_module(self.model, {**state["model"], **state["average"]})
        known = {k: v for k, v in state["head"].items() if k in head and v.shape == head[k].shape}
        checkpoint.load_module(self.head, {**head, **known})
        self.restore_extra(state)
        self.average = WeightAverage(self.model, self.config.average)
        self.origin = state.get("origin", "")

    def begin(self, weights: Mapping[str, Tensor], origin: str) -> None:
        """Start from the weights of a model that fits, see `beginning`; what its file lacks begins anew."""
        checkpoint.load_module(self.model, weights)
        self.average = WeightAverage(self.model, self.config.average)
        self.origin = origin

    def _read(self, path: Path) -> dict[str, Any]:
        state = checkpoint.read(path, device=self.device)
        mismatch = f"{path} was trained with another model configuration"
        try:
            saved: Any = from_dict(type(self.config), state["config"])
        except ConfigError as error:
            raise ConfigError(f"{mismatch} ({error}); use another output directory") from error
        same = checkpoint.shapes(state["model"]) == checkpoint.shapes(self.model.state_dict())
        if self.networks(saved) != self.networks(self.config) or not same:
            found = self.differing(saved.model) or "a network that only training has differs"
            raise ConfigError(f"{mismatch} ({found}); use another output directory")
        return state

    def differing(self, model: Any) -> str:
        """Which settings of a model's configuration, of those that weights depend on, are not this run's, or ""."""
        own: Any = self.config
        shapes = ({name: to_dict(config)[name] for name in self.shape} for config in (model, own.model))
        found = differences(*shapes, where="model")
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        return ", ".join(found[:NAMED]) + more

    def averaged_model(self) -> Any:
        """A copy of the model with the averaged weights, for decoding; all processes must take part."""
        model = self.new_model().to(self.device)
        state = {**self.model.state_dict(), **self.average.values}
        model.load_state_dict({name: whole(value) for name, value in state.items()})
        return model.eval()
