"""Stable Diffusion 1 and 2 without text (`diffusers` extra): autoencoder, UNet, and the empty prompt's embedding."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from codling.errors import ConfigError
from codling.models.stable_diffusion_parts import AutoencoderConfig, NoiseSchedule, StableDiffusionNetworks, UNetConfig

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class StableDiffusionConfig:
    """The whole model.

    predicts: what the UNet does, "epsilon" (the noise: 1.5, 2.1-base) or "v_prediction" (sqrt(a) noise - sqrt(1 - a)
    data, Salimans and Ho 2022: 2.1). prompt_tokens: rows of the empty prompt's embedding.
    """

    predicts: str
    unet: UNetConfig = field(default_factory=UNetConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    prompt_tokens: int = 77

    def __post_init__(self) -> None:
        if self.predicts not in PREDICTIONS:
            raise ConfigError(f"the UNet must predict {' or '.join(PREDICTIONS)}, got {self.predicts!r}")
        channels = (self.unet.in_channels, self.unet.out_channels)
        if channels != (self.autoencoder.latent_channels,) * 2:
            raise ConfigError(
                f"the UNet has {channels[0]} channels in and {channels[1]} out, but latents have "
                f"{self.autoencoder.latent_channels}; wanted a text-to-image model, not one for inpainting or depth"
            )

    @property
    def grid(self) -> int:
        """Sides that the UNet's levels divide: every one but the last halves the latent."""
        return self.autoencoder.stride * 2 ** (len(self.unet.block_out_channels) - 1)


class StableDiffusion(StableDiffusionNetworks):
    """The networks. The prompt never changes, so of the text encoder only its output is kept, (tokens, width)."""

    def __init__(self, config: StableDiffusionConfig):
        super().__init__(config.unet, config.autoencoder)
        self.config = config
        self.register_buffer("prompt", torch.zeros(config.prompt_tokens, config.unet.cross_attention_dim))
        self.prompt: Tensor
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.prompt.device

    def forward(self, state: Tensor, timestep: Tensor) -> Tensor:
        """What the UNet predicts of sqrt(a) data + sqrt(1 - a) noise, (B, C, h, w). timestep: (), need not be whole."""
        prompt = self.prompt.expand(len(state), -1, -1)
        predicted: Tensor = self.unet(state, timestep, encoder_hidden_states=prompt).sample
        return predicted
