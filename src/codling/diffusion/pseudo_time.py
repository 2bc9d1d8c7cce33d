"""The time at which a noisy latent is as far from the true one as a compressed latent is (Guo et al. 2025, OSCAR).

In many dimensions noise is orthogonal to data, so the cosine between data z and a noisy state of it is no accident:
for data of root mean square s and unit noise it is

    sqrt(a) s / sqrt(a s^2 + 1 - a)         for sqrt(a) z + sqrt(1 - a) n    (variance preserving; sqrt(a) if s = 1)
    t s / sqrt(t^2 s^2 + (1 - t)^2)         for t z + (1 - t) n              (flow, t = 0 noise, t = 1 data)

The cosine measured between true and compressed latents thus says where on the way to put them. Nothing is typed in.
"""

from math import hypot, sqrt

import torch
from torch import Tensor

from codling.errors import ConfigError


def cosine(latent: Tensor, rough: Tensor) -> Tensor:
    """Cosines over space, (B, C), of a latent and a compressed one, both (B, C, H, W).

    By channel, so that no scale of a channel matters. Where either is zero everywhere, the cosine is 0.
    """
    return torch.cosine_similarity(latent.flatten(2).double(), rough.flatten(2).double(), dim=-1)


def root_mean_square(latent: Tensor) -> float:
    """s, over all of a tensor. Cosines are taken about zero, and so is this."""
    return float(latent.double().square().mean().sqrt())


def signal_share(c: float, *, deviation: float = 1.0) -> float:
    """a, often written alpha-bar, of the variance-preserving state with the cosine c. deviation: s, of the data.

    Raises ConfigError unless 0 <= c <= 1 and s > 0, as do the functions below.
    """
    _check(c, deviation)
    return c**2 / (c**2 + (1 - c**2) * deviation**2)


def flow_time(c: float, *, deviation: float = 1.0) -> float:
    """t of the flow's state with the cosine c."""
    _check(c, deviation)
    noise = deviation * sqrt(1 - c**2)
    return c / (c + noise)


def cosine_at(time: float, *, deviation: float = 1.0) -> float:
    """The inverse of `flow_time`."""
    return time * deviation / hypot(time * deviation, 1 - time)


def cosine_of(share: float, *, deviation: float = 1.0) -> float:
    """The inverse of `signal_share`."""
    return sqrt(share) * deviation / sqrt(share * deviation**2 + 1 - share)


def timestep_of(share: float, shares: Tensor) -> int:
    """The timestep of a schedule (its alpha-bar, descending) whose signal-to-noise ratio is nearest in logarithm."""
    wanted = torch.logit(torch.tensor(share, dtype=torch.float64), eps=1e-12)
    return int((torch.logit(shares.double(), eps=1e-12) - wanted).abs().argmin())


def _check(c: float, deviation: float) -> None:
    if not 0 <= c <= 1 or not deviation > 0:
        raise ConfigError(
            f"no noisy state has the cosine {c} with data of root mean square {deviation}; wanted a cosine from 0 to 1 "
            "and a positive root mean square (a model that is not trained yet can have negative cosines)"
        )
