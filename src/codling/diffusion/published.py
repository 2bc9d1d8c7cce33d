"""The time axis of the published DiffC on CoD, for comparing with its numbers; nothing else of codling uses it.

Timesteps k run from 1000 (noise) to 1. The signal-to-noise ratio of k is that of the noise fraction (k - 1) / 1000, but
the network is told the flow time 1 - k / 1000: one step apart. States are in the variance-preserving form.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor

from codling.diffusion.guidance import VelocityFunction
from codling.diffusion.posterior import Posterior, flow_scale, posterior, signal_share

FIRST = 1000


def noise_fraction(timestep: int) -> float:
    """(k - 1) / 1000, 0 for the last timesteps 1 and 0."""
    return max(timestep - 1, 0) / 1000


def step_posterior(timestep: int, following: int) -> Posterior:
    """q(z_following | z_timestep, x), see `posterior`."""
    return posterior(noise_fraction(timestep), noise_fraction(following))


def noise_estimate(velocity: VelocityFunction, state: Tensor, timestep: int) -> Tensor:
    """The network's estimate of the noise in a state (B, C, H, W)."""
    s = noise_fraction(timestep)
    flow = state * flow_scale(s)
    t = torch.full(state.shape[:1], 1 - timestep / 1000)
    return flow - (1 - s) * velocity(flow, t)


def data_estimate(state: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """The picture that a state and an estimate of its noise leave."""
    a = signal_share(noise_fraction(timestep))
    return (state - sqrt(1 - a) * noise) / sqrt(a)


def probability_flow(velocity: VelocityFunction, state: Tensor, timesteps: Sequence[int]) -> Tensor:
    """DDIM steps (Song et al. 2021, eta = 0) from the first timestep through the others."""
    for timestep, following in pairwise(timesteps):
        noise = noise_estimate(velocity, state, timestep)
        a = signal_share(noise_fraction(following))
        state = sqrt(a) * data_estimate(state, noise, timestep) + sqrt(1 - a) * noise
    return state
