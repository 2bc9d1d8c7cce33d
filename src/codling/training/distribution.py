"""Distribution matching (DMD, Yin et al. 2024): restored pictures go where true ones are likelier than restored ones.

Add noise to a restored picture. Two models estimate what is behind it: the base, which knows true pictures, and the
fake, a copy of it that keeps learning restored pictures. By Tweedie's formula an estimate less the state is the score
of noisy pictures up to a factor, so the difference of the two estimates is the gradient of the divergence
KL(restored | true) at that noise level. The base is frozen; neither gets a gradient from the term.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codling.diffusion.path import data_from_velocity
from codling.errors import ConfigError
from codling.models.cod import CoD
from codling.models.denoiser import Denoiser
from codling.training.checkpoint import load_module, load_optimiser
from codling.training.engine import Engine
from codling.weights.registry import load_network

# Noise fractions that the models are asked at.
LOWEST, HIGHEST = 0.02, 0.98


@dataclass(frozen=True)
class Probe:
    """Where a step compares the models: noise fractions (B,), noise like the images, and the true images, which
    conditional models read their condition off."""

    level: Tensor
    noise: Tensor
    image: Tensor

    def state(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) at the noise fractions."""
        s = self.level.view(-1, 1, 1, 1)
        return (1 - s) * image + s * self.noise


class DenoiserEstimate(nn.Module):
    """The denoiser of DiffC as a base: it needs no condition."""

    def __init__(self, network: Denoiser):
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, probe: Probe) -> Tensor:
        """States (B, 3, H, W) -> the pictures behind them."""
        out: Tensor = self.network(state, probe.level)
        return out.float()


class CoDEstimate(nn.Module):
    """A CoD as a base, conditional on its own tokens of the true picture (as in CoD-Lite)."""

    def __init__(self, network: CoD):
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, probe: Probe) -> Tensor:
        codec = self.network.condition_codec
        with torch.no_grad():
            condition = codec.decode(codec.encode(probe.image))
        velocity = self.network.velocity(state, 1 - probe.level, condition).float()
        return data_from_velocity(state, velocity, 1 - probe.level)


def load_estimate(name: str, *, device: torch.device) -> DenoiserEstimate | CoDEstimate:
    """A base by name or directory of its model. Raises ConfigError unless it is a denoiser or a pixel-space CoD."""
    network = load_network(name, device=device)
    if isinstance(network, Denoiser):
        return DenoiserEstimate(network)
    if isinstance(network, CoD) and network.config.space == "pixel":
        return CoDEstimate(network)
    raise ConfigError(
        f"training: distribution_base {name!r} is neither a denoiser nor a pixel-space CoD; choose one like diffc-xs "
        "or cod-xs"
    )


class DistributionMatching:
    """The base, the fake and its optimiser. name: of the base."""

    def __init__(self, base: nn.Module, *, name: str, learning_rate: float):
        self.name, self.learning_rate = name, learning_rate
        self.base = base.eval().requires_grad_(False)
        self.fake = copy.deepcopy(base).requires_grad_(True)
        if isinstance(self.fake, CoDEstimate):
            self.fake.network.condition_codec.requires_grad_(False)

    def distribute(self, engine: Engine) -> None:
        """Let the fake learn, together with other processes'."""
        self.engine, self.learner = engine, engine.wrap(self.fake)
        learned = [p for p in self.fake.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(learned, lr=self.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))

    def term(self, restored: Tensor, probe: Probe) -> Tensor:
        """Half the mean square of the direction, a scalar whose gradient moves restored images along the direction.

        The direction, base's estimate less fake's, is in units of each picture's mean absolute distance from the base's
        estimate (equation 8 of the paper).
        """
        with torch.no_grad(), self.engine.autocast():
            state = probe.state(restored)
            wanted, found = self.base(state, probe), self.fake(state, probe)
        unit = (restored - wanted).abs().mean((1, 2, 3), keepdim=True).detach()
        goal = (restored + (wanted - found) / unit.clamp(min=1e-6)).detach()
        return 0.5 * (goal - restored).square().mean()

    def learn(self, restored: Tensor, probe: Probe) -> Tensor:
        """One step of the fake on restored images (B, 3, H, W); returns its loss, that of flow matching."""
        restored = restored.detach()
        with self.engine.autocast():
            estimate = self.learner(probe.state(restored), probe)
        # An estimate's error is that of the velocity times the noise fraction.
        loss = ((estimate - restored) / probe.level.view(-1, 1, 1, 1)).square().mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"base": self.name, "fake": self.fake.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. Raises ConfigError where the fake grew from another base."""
        if state["base"] != self.name:
            raise ConfigError(
                f"training: the checkpoint's distribution_base is {state['base']!r}, not {self.name!r}; set it to that"
            )
        load_module(self.fake, state["fake"])
        load_optimiser(self.optimiser, state["optimiser"])
