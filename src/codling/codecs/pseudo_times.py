"""Measuring an OSCAR model on pictures: how near each level's compressed latents come to the true ones."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codling.codecs.tiling import pad_to_grid
from codling.diffusion import pseudo_time
from codling.errors import ConfigError
from codling.models.rate_levels import LatentModel


@dataclass(frozen=True)
class LevelMeasurement:
    """A level as measured. cosine: mean over pictures and channels. time: the flow's, by it. told: the model's own."""

    level: int
    cosine: float
    time: float
    told: float


@dataclass(frozen=True)
class Measurement:
    """deviation: root mean square of the latents. maps: of each level, the one (h, w) that it adds, a picture each."""

    deviation: float
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
    levels = []
    for level, (entry, values) in enumerate(zip(model.levels, cosines, strict=True)):
        c = float(np.mean(values))
        levels.append(LevelMeasurement(level, c, pseudo_time.flow_time(c, deviation=deviation), entry.time))
    return Measurement(deviation, tuple(levels), maps)
