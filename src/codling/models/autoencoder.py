"""Spaces a diffusion can live in: adapters between images and states.

Both have `encode(image) -> state`, `decode(state) -> image`, `channels` and `stride` (pixels a state pixel).
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from codling.errors import ModelError


class Autoencoder(Protocol):
    """Image (B, 3, H, W) in [-1, 1] <-> state (B, channels, H / stride, W / stride)."""

    channels: int
    stride: int

    def encode(self, image: Tensor) -> Tensor: ...

    def decode(self, state: Tensor) -> Tensor: ...


class PixelSpace(nn.Module):
    """The state is the image."""

    channels, stride = 3, 1

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, state: Tensor) -> Tensor:
        return state


class StableDiffusionVAE(nn.Module):
    """The autoencoder of Stable Diffusion (`diffusers` extra), by the mean of its posterior, never a sample.

    CoD's published models scale its latents by the square of the autoencoder's scaling factor.
    """

    channels, stride = 4, 8

    def __init__(self, vae: nn.Module, scale: float):
        super().__init__()
        self.vae: Any = vae
        self.scale = scale

    @classmethod
    def load(cls, directory: str) -> "StableDiffusionVAE":
        """From a directory (or hub name) in `diffusers` layout. Raises ModelError where it cannot be had."""
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise ModelError(
                "this model works in the latent space of Stable Diffusion's autoencoder, which needs the package "
                "`diffusers`: pip install 'codling[diffusers]'"
            ) from error
        try:
            vae = AutoencoderKL.from_pretrained(directory)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"cannot load the autoencoder from {directory!r}: {error}. Put `config.json` and "
                "`diffusion_pytorch_model.safetensors` of stabilityai/sd-vae-ft-ema into a directory and name it."
            ) from error
        return cls(vae.eval().requires_grad_(False), float(vae.config.scaling_factor) ** 2)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        mean: Tensor = self.vae.encode(image).latent_dist.mean
        return mean * self.scale

    @torch.no_grad()
    def decode(self, state: Tensor) -> Tensor:
        image: Tensor = self.vae.decode(state / self.scale).sample
        return image
