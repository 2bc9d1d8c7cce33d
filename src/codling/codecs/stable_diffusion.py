"""Stable Diffusion as a backbone of DiffC: its noise predictions at its timesteps as a velocity on the flow."""

import torch
from torch import Tensor

from codling.codecs.chain import Chain
from codling.diffusion.guidance import VelocityFunction
from codling.diffusion.posterior import flow_scale, signal_share
from codling.models.denoiser import SMALLEST_NOISE
from codling.models.stable_diffusion import StableDiffusion


class StableDiffusionBackbone:
    """A latent UNet without text: the prompt is empty, as published (text costs more bits than it saves)."""

    conditional, gaussian = False, False

    def __init__(self, model: StableDiffusion):
        config = model.config
        self.model = model.eval()
        self.channels, self.stride = config.autoencoder.latent_channels, config.autoencoder.stride
        self.grid, self.predicts = config.grid, config.predicts
        # log of signal over noise at each timestep, descending.
        self.log_snr = torch.logit(config.schedule.signal_shares().double())

    @property
    def device(self) -> torch.device:
        return self.model.device

    def condition(self, image: Tensor) -> bytes:
        return b""

    def velocity(self, condition: bytes, *, height: int, width: int) -> VelocityFunction:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            noise = max(1 - float(t[0]), SMALLEST_NOISE)
            a = signal_share(noise)
            state = x.float() / flow_scale(noise)
            out = self.model(state, self.timestep(a)).float()
            if self.predicts == "epsilon":
                data = (state - (1 - a) ** 0.5 * out) / a**0.5
            else:
                data = a**0.5 * state - (1 - a) ** 0.5 * out
            return (data - x) / noise

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
        return self.model.latent(image)

    @torch.inference_mode()
    def to_image(self, state: Tensor) -> Tensor:
        return self.model.image(state)

    def picture(self, chain: Chain) -> Tensor:
        return self.to_image(chain.image_estimate().to(self.device))
