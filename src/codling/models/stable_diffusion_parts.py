"""What models on Stable Diffusion are made of: its networks, their settings, its noise schedule (`diffusers` extra)."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codling.errors import ModelError


@dataclass(frozen=True)
class UNetConfig:
    """Settings of `diffusers`' UNet2DConditionModel that Stable Diffusions differ in; defaults are those of 2.1."""

    sample_size: int = 96
    in_channels: int = 4
    out_channels: int = 4
    layers_per_block: int = 2
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    cross_attention_dim: int = 1024
    attention_head_dim: tuple[int, ...] = (5, 10, 20, 20)
    use_linear_projection: bool = True
    upcast_attention: bool = True
    norm_num_groups: int = 32


@dataclass(frozen=True)
class AutoencoderConfig:
    """The same of `diffusers`' AutoencoderKL."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 768
    scaling_factor: float = 0.18215

    @property
    def stride(self) -> int:
        """Pixels a latent pixel spans."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class NoiseSchedule:
    """Stable Diffusion's "scaled linear" one: the square roots of the betas rise linearly."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_timesteps: int = 1000

    def signal_shares(self) -> Tensor:
        """alpha-bar of each timestep, descending, (train_timesteps,), float32 as published."""
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_timesteps, device="cpu") ** 2
        return (1 - betas).cumprod(0)


class StableDiffusionNetworks(nn.Module):
    """The UNet and the autoencoder, and pictures to and from the latents of the second."""

    def __init__(self, unet: UNetConfig, autoencoder: AutoencoderConfig):
        super().__init__()
        unet_class, autoencoder_class = diffusers_classes()
        self.unet: Any = unet_class(**asdict(unet))
        self.autoencoder: Any = autoencoder_class(**asdict(autoencoder))
        self.scaling_factor = autoencoder.scaling_factor

    def latent(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> latent (B, C, H / 8, W / 8) of about unit variance: the posterior's mean."""
        mean: Tensor = self.autoencoder.encode(image).latent_dist.mean
        return mean * self.scaling_factor

    def image(self, latent: Tensor) -> Tensor:
        """The inverse of `latent`, as well as the autoencoder can."""
        image: Tensor = self.autoencoder.decode(latent / self.scaling_factor).sample
        return image


def diffusers_classes() -> tuple[Any, Any]:
    """UNet2DConditionModel and AutoencoderKL. Raises ModelError where `diffusers` is not installed."""
    try:
        from diffusers import AutoencoderKL, UNet2DConditionModel
    except ImportError as error:
        raise ModelError(
            "this model is made of Stable Diffusion's parts, which need the package `diffusers`: "
            "pip install 'codling[diffusers]'"
        ) from error
    return UNet2DConditionModel, AutoencoderKL
