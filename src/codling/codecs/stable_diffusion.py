"""Stable Diffusion as a backbone of DiffC (`diffusers` extra): UNet, schedule and autoencoder of a pipeline."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codling.diffusion.guidance import VelocityFunction
from codling.diffusion.posterior import flow_scale, signal_share
from codling.errors import ModelError


class StableDiffusionBackbone:
    """A latent UNet without text: the prompt is empty, as published (text costs more bits than it saves).

    prompt: embedding of the empty prompt, (1, tokens, width).
    """

    channels, stride, conditional = 4, 8, False

    def __init__(self, unet: Any, autoencoder: Any, alphas_cumprod: Tensor, prompt: Tensor, *, predicts: str):
        if predicts not in ("epsilon", "v_prediction"):
            raise ModelError(f'the UNet must predict "epsilon" or "v_prediction", got {predicts!r}')
        self.unet, self.autoencoder = unet.eval(), autoencoder.eval()
        # log of signal over noise at each timestep, descending.
        self.log_snr = torch.logit(alphas_cumprod.double())
        self.prompt, self.predicts = prompt, predicts
        # Every level of the UNet but the last halves the latent.
        self.grid = self.stride * 2 ** (len(unet.config.block_out_channels) - 1)

    @classmethod
    def load(cls, directory: str | Path) -> "StableDiffusionBackbone":
        """From a pipeline in `diffusers` layout. Raises ModelError naming what is missing."""
        try:
            from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
            from transformers import CLIPTextModel, CLIPTokenizer
        except ImportError as error:
            raise ModelError(
                f"Stable Diffusion needs the packages diffusers and transformers ({error.name} is missing): "
                "pip install 'codling[diffusers]' transformers"
            ) from error
        try:
            unet = UNet2DConditionModel.from_pretrained(directory, subfolder="unet")
            autoencoder = AutoencoderKL.from_pretrained(directory, subfolder="vae")
            schedule = DDPMScheduler.from_pretrained(directory, subfolder="scheduler")
            tokenizer = CLIPTokenizer.from_pretrained(directory, subfolder="tokenizer")
            encoder = CLIPTextModel.from_pretrained(directory, subfolder="text_encoder")
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{directory} is not a whole Stable Diffusion pipeline: {error}. Wanted, in diffusers layout, the "
                "folders unet, vae, scheduler, tokenizer and text_encoder"
            ) from error
        tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
        with torch.inference_mode():
            prompt = encoder(tokens.input_ids)[0]
        return cls(unet, autoencoder, schedule.alphas_cumprod, prompt, predicts=schedule.config.prediction_type)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def condition(self, image: Tensor) -> bytes:
        return b""

    def velocity(self, condition: bytes, *, height: int, width: int) -> VelocityFunction:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            noise = max(1 - float(t[0]), 1 / 1024)
            a = signal_share(noise)
            state = x.to(self.device).float() / flow_scale(noise)
            out = self.unet(state, self.timestep(a), encoder_hidden_states=self.prompt.to(self.device)).sample.float()
            if self.predicts == "epsilon":
                data = (state - (1 - a) ** 0.5 * out) / a**0.5
            else:
                data = a**0.5 * state - (1 - a) ** 0.5 * out
            return (data.to(x.device) - x) / noise

        return velocity

    def timestep(self, share: float) -> Tensor:
        """The timestep, not whole in general, at which the UNet's schedule has this share of signal."""
        wanted = torch.logit(torch.tensor(share, dtype=torch.float64))
        rising = -self.log_snr
        above = int(torch.searchsorted(rising, -wanted).clamp(1, len(rising) - 1))
        low, high = rising[above - 1], rising[above]
        place = above - 1 + ((-wanted - low) / (high - low)).clamp(0, 1)
        return place.float().to(self.device)

    @torch.inference_mode()
    def to_state(self, image: Tensor) -> Tensor:
        latent: Tensor = self.autoencoder.encode(image).latent_dist.mean * self.autoencoder.config.scaling_factor
        return latent

    @torch.inference_mode()
    def to_image(self, state: Tensor) -> Tensor:
        image: Tensor = self.autoencoder.decode(state / self.autoencoder.config.scaling_factor).sample
        return image
