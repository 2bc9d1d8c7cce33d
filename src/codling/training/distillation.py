"""Distillation of sampling: one step learns what a denoiser makes of a noisy state in many (Luhman and Luhman 2021).

The flow has no randomness of its own, so where it ends is a function of the state it begins at. A network can learn
that function by regression, texture included: the noise of the state decides which one. What is behind the state on
average has none.
"""

import torch
from torch import Tensor

from codling.diffusion.samplers import sampler
from codling.errors import ConfigError
from codling.models.denoiser import Denoiser
from codling.weights.registry import load_network


class SampledTeacher:
    """A denoiser, the number of steps that it samples in, and how much rougher its samples are made.

    The score of a way that begins at noise fraction s is multiplied by 1 - roughness s min(1, 2.5 (1 - s)), see
    `guidance.score_scaled`: where next to nothing is known, all of the texture would be rough.
    """

    def __init__(self, network: Denoiser, *, steps: int, roughness: float = 0.0):
        self.network, self.steps, self.roughness = network.eval().requires_grad_(False), steps, roughness

    @classmethod
    def load(cls, name: str, *, steps: int, roughness: float, device: torch.device) -> "SampledTeacher":
        """By name or directory. Raises ConfigError unless it is a denoiser."""
        network = load_network(name, device=device)
        if not isinstance(network, Denoiser):
            raise ConfigError(f"training: sampled_from {name!r} is not a denoiser; choose one like diffc-xs")
        return cls(network, steps=steps, roughness=roughness)

    @torch.no_grad()
    def sample(self, state: Tensor, noise_level: Tensor) -> Tensor:
        """States (B, 3, H, W) of the flow at noise fractions (B,), each its own -> samples like them."""

        begin = noise_level.view(-1, 1, 1, 1)
        scale = 1 - self.roughness * begin * (2.5 * (1 - begin)).clamp(max=1)

        # Every state's way is measured from 0 to 1: with s = s_0 (1 - u), dx/du = s_0 v = (estimate - x) / (1 - u).
        def velocity(x: Tensor, u: Tensor) -> Tensor:
            left = (1 - u).to(x.dtype).view(-1, 1, 1, 1)
            estimate: Tensor = self.network(x, noise_level * left.flatten())
            v = (estimate.float() - x) / left
            return scale * v + (1 - scale) * begin * x / (1 - begin * left)

        return sampler("adams2")(velocity, state.float(), torch.linspace(0, 1, self.steps + 1, dtype=torch.float64))
