"""Measuring an OSCAR model on pictures: how near each level's compressed latents come to the true ones."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from codling.codecs.tiling import pad_to_grid
from codling.diffusion import pseudo_time
from codling.diffusion.posterior import signal_share
from codling.errors import ConfigError
from codling.models.rate_levels import LatentModel


@runtime_checkable
class ScheduledModel(LatentModel, Protocol):
    """One whose network is told timesteps of a discrete schedule."""

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Of each level."""
        ...

    def signal_shares(self) -> Tensor:
        """alpha-bar of each timestep, descending."""
        ...


@dataclass(frozen=True)
class Place:
    """A place between noise and data.

    time: on the flow. share: alpha-bar of the variance-preserving state with the same signal-to-noise ratio. timestep:
    of the model's schedule; None where it has none.
    """

    time: float
    share: float
    timestep: int | None


@dataclass(frozen=True)
class LevelMeasurement:
    """A level. cosine: mean over pictures and channels. measured: where that puts it. told: what the network is."""

    level: int
    cosine: float
    measured: Place
    told: Place


@dataclass(frozen=True)
class Measurement:
    """deviation: root mean square of the latents. schedule: alpha-bar of each timestep of the model, descending; None
    where it has no timesteps. maps: of each level, the one (h, w) that it adds, a picture each."""

    deviation: float
    schedule: Tensor | None
    levels: tuple[LevelMeasurement, ...]
    maps: tuple[list[np.ndarray], ...]


@torch.inference_mode()
def measure(model: LatentModel, images: Iterable[Tensor]) -> Measurement:
    """Images (1, 3, H, W) in [-1, 1], any size -> what the model makes of them at each level.

    Raises ConfigError without a picture, or where a level's cosine is negative.
    """
    count = len(model.levels)
    cosines: list[list[float]] = [[] for _ in range(count)]
    maps: tuple[list[np.ndarray], ...] = tuple([] for _ in range(count))
    powers: list[float] = []
    for image in images:
        padded = pad_to_grid(image, model.grid).to(model.device)
        latent = model.latent(padded)
        powers.append(pseudo_time.root_mean_square(latent) ** 2)
        for level, tokens in enumerate(model.encode_levels(padded, range(count))):
            cosines[level].append(float(pseudo_time.cosine(latent, model.rough_latent(tokens, level)).mean()))
            maps[level].append(tokens.indices[0, -1].cpu().numpy())
    if not powers:
        raise ConfigError("no picture to measure; give at least one")
    deviation = float(np.sqrt(np.mean(powers)))
    schedule = model.signal_shares() if isinstance(model, ScheduledModel) else None
    levels = tuple(
        LevelMeasurement(level, c := float(np.mean(values)), _place_of(c, deviation, schedule), _told(model, level))
        for level, values in enumerate(cosines)
    )
    return Measurement(deviation, schedule, levels, maps)


def _place_of(cosine: float, deviation: float, schedule: Tensor | None) -> Place:
    share = pseudo_time.signal_share(cosine, deviation=deviation)
    timestep = None if schedule is None else pseudo_time.timestep_of(share, schedule)
    return Place(pseudo_time.flow_time(cosine, deviation=deviation), share, timestep)


def _told(model: LatentModel, level: int) -> Place:
    time = model.levels[level].time
    return Place(time, signal_share(1 - time), model.timesteps[level] if isinstance(model, ScheduledModel) else None)
