"""OSCAR on a pixel-space flow: a coarse image at one of many rates, one denoising step at the time that fits the rate.

    image --HyperCodec at a level, or DiffC's channel coder--> bytes --> coarse image z
    z --(1 - s) z + s n at noise fraction s--> Denoiser --> image

What bytes keep of a picture is as far from it as what a noisy state keeps at some noise level (Guo et al. 2025), and
frequencies that they miss are those that noise of that level drowns. So one denoiser, told the level, restores
them all, and a denoiser trained on noisy pictures is the place to start from.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from codling.errors import ConfigError
from codling.models.denoiser import Denoiser, DenoiserConfig
from codling.models.hyper_codec import HyperCodec, HyperCodecConfig
from codling.models.rate_levels import RateLevel


@dataclass(frozen=True)
class OscarConfig:
    """hyper: all rates' encoders and decoders. denoiser: what restores. grain: share of the noise that is really added.

    grain: 1 makes the denoiser's input a state of the flow and gives it something to make texture from; 0, as
    published, the coarse picture alone. noise_share: the noise fraction of a coarse image, as a share of that at which
    the filter is expected to err as much as it does.
    """

    hyper: HyperCodecConfig = field(default_factory=HyperCodecConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    grain: float = 1.0
    noise_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.grain <= 1:
            raise ConfigError(f"oscar: grain must be between 0 and 1, got {self.grain}")
        if not 0 < self.noise_share <= 1:
            raise ConfigError(f"oscar: noise_share must be above 0 and at most 1, got {self.noise_share}")

    @property
    def grid(self) -> int:
        """Picture sides are padded to multiples of this many pixels."""
        return max(self.hyper.grid, self.denoiser.grid)


class Oscar(nn.Module):
    """Hyper codec, denoiser, and the noise level of each rate, measured: `noise` (levels,), in (0, 1)."""

    def __init__(self, config: OscarConfig):
        super().__init__()
        self.config = config
        self.hyper = HyperCodec(config.hyper)
        self.denoiser = Denoiser(config.denoiser)
        self.noise: Tensor
        self.register_buffer("noise", torch.full((len(config.hyper.levels),), 0.5))

    @property
    def levels(self) -> tuple[RateLevel, ...]:
        """The rate table."""
        hyper, table = self.config.hyper, []
        for level, noise in zip(hyper.levels, self.noise.tolist(), strict=True):
            stack = hyper.stacks[level.stack]
            table.append(RateLevel(stack.stride, stack.codebook_size, 1 - noise, level.depth))
        return tuple(table)

    def noise_of(self, errors: Tensor) -> Tensor:
        """Noise fractions (B,) of coarse images with expected squared errors (B,) a sample."""
        return self.config.noise_share * self.denoiser.filter.noise_of(errors)

    def error_of(self, noise_levels: Tensor) -> Tensor:
        """The inverse of `noise_of`."""
        return self.denoiser.filter.error(noise_levels / self.config.noise_share)

    def noisy(self, coarse: Tensor, noise_level: Tensor, noise: Tensor) -> Tensor:
        """Coarse images (B, 3, H, W), noise fractions (B,), standard normal noise like the images -> states."""
        s = noise_level.view(-1, 1, 1, 1)
        return (1 - s) * coarse + self.config.grain * s * noise

    def restore(self, state: Tensor, coarse: Tensor, noise_level: Tensor) -> Tensor:
        """States (B, 3, H, W) at noise fractions (B,), and the coarse images that are known of them -> images."""
        return self.denoiser.corrected(state, coarse, noise_level)
