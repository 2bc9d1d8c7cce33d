"""The published OSCAR: a hyper-encoder for each rate before Stable Diffusion 2.1, which runs once (`diffusers` extra).

latent z = autoencoder's mean;  rough z' = hyper-encoder of the level, each channel scaled to the norm of z's
v = UNet(z', the level's timestep, learned prompt);  z estimate = sqrt(a) z' - sqrt(1 - a) v;  image = autoencoder(it)
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from codling.errors import ModelError
from codling.models.hyper_encoder import HyperEncoder, HyperEncoderConfig
from codling.models.rate_levels import RateLevel, Tokens
from codling.models.stable_diffusion_parts import AutoencoderConfig, NoiseSchedule, StableDiffusionNetworks, UNetConfig


@dataclass(frozen=True)
class LevelConfig:
    """A rate level. timestep: 0 to 999, at which the UNet takes the rough latent to be."""

    hyper_encoder: HyperEncoderConfig
    timestep: int


@dataclass(frozen=True)
class OscarStableDiffusionConfig:
    """The whole model. The noise schedule is Stable Diffusion's "scaled linear" one; the UNet predicts v.

    levels: by ascending rate. prompt_tokens: rows of the learned prompt. The last three are those of `schedule`. They
    are not nested, as models imported so far have them like this, and what a model's id is of covers its settings.
    """

    levels: tuple[LevelConfig, ...]
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    prompt_tokens: int = 77
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_timesteps: int = 1000

    @property
    def grid(self) -> int:
        """Sides that the coarsest token and the UNet's levels divide."""
        unet = 2 ** (len(self.unet.block_out_channels) - 1)
        return self.autoencoder.stride * max(unet, *(level.hyper_encoder.stride for level in self.levels))

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule(self.beta_start, self.beta_end, self.train_timesteps)


class OscarStableDiffusion(StableDiffusionNetworks):
    """Keeps the contract of `LatentModel`, and has timesteps; its tokens carry the gains of the latent's channels."""

    def __init__(self, config: OscarStableDiffusionConfig):
        super().__init__(config.unet, config.autoencoder)
        self.config = config
        self.hyper_encoders = nn.ModuleList(HyperEncoder(level.hyper_encoder) for level in config.levels)
        self.prompt = nn.Parameter(torch.zeros(config.prompt_tokens, config.unet.cross_attention_dim))
        self.eval()

    @property
    def channels(self) -> int:
        """Of the latent, and so the gains a picture has."""
        return self.config.autoencoder.latent_channels

    @property
    def grid(self) -> int:
        return self.config.grid

    @property
    def device(self) -> torch.device:
        return self.prompt.device

    @cached_property
    def levels(self) -> tuple[RateLevel, ...]:
        stride, shares = self.config.autoencoder.stride, self.signal_shares().double()
        times = shares.sqrt() / (shares.sqrt() + (1 - shares).sqrt())
        return tuple(
            RateLevel(
                stride * level.hyper_encoder.stride, level.hyper_encoder.codebook_size, float(times[level.timestep])
            )
            for level in self.config.levels
        )

    @property
    def timesteps(self) -> tuple[int, ...]:
        """What the UNet is told of each level."""
        return tuple(level.timestep for level in self.config.levels)

    def signal_shares(self) -> Tensor:
        """alpha-bar of each timestep, descending, (train_timesteps,)."""
        return self.config.schedule.signal_shares()

    def encode(self, image: Tensor, level: int) -> Tokens:
        """Image (B, 3, H, W) in [-1, 1] -> tokens. The latent is the posterior's mean; published, a sample of it."""
        return self.encode_levels(image, (level,))[0]

    def encode_levels(self, image: Tensor, levels: Sequence[int]) -> list[Tokens]:
        """The same at several levels, for one run of the autoencoder."""
        latent, found = self.latent(image), []
        for level in levels:
            indices = self.hyper_encoder(level).indices(latent)
            rough = self.hyper_encoder(level).latent(indices)
            found.append(Tokens(indices[:, None], (channel_norms(latent) / channel_norms(rough)).log()))
        return found

    def decode(self, tokens: Tokens, level: int) -> Tensor:
        """Tokens -> image (B, 3, H, W) in [-1, 1]."""
        return self.image(self.denoise(self.rough_latent(tokens, level), level)).clamp(-1, 1)

    def rough_latent(self, tokens: Tokens, level: int) -> Tensor:
        """What the tokens say of the latent, (B, C, H / 8, W / 8), every channel at its transmitted norm."""
        if tokens.log_gains is None:
            raise ModelError("the tokens carry no gains, but this model's latents are scaled by them")
        return self.hyper_encoder(level).latent(tokens.indices[:, 0]) * tokens.log_gains.exp()[..., None, None]

    def velocity(self, rough: Tensor, level: int) -> Tensor:
        """The UNet's v = sqrt(a) noise - sqrt(1 - a) data (Salimans and Ho 2022) at a level's timestep."""
        timestep = torch.full(rough.shape[:1], self.timesteps[level], device=rough.device)
        prompt = self.prompt.expand(len(rough), -1, -1)
        v: Tensor = self.unet(rough, timestep, encoder_hidden_states=prompt).sample
        return v

    def denoise(self, rough: Tensor, level: int) -> Tensor:
        """The latent that one evaluation makes of a rough one."""
        share = float(self.signal_shares()[self.timesteps[level]])
        return share**0.5 * rough - (1 - share) ** 0.5 * self.velocity(rough, level)

    def hyper_encoder(self, level: int) -> HyperEncoder:
        module = self.hyper_encoders[level]
        assert isinstance(module, HyperEncoder)
        return module

    def prepare(self) -> "OscarStableDiffusion":
        """A new model, sharing this one's tensors, for decoding: the prompt never changes, so its keys and values in
        every attention layer are computed once and their projections are dropped."""
        shared = {id(tensor): tensor for tensor in self.parameters()}
        other = copy.deepcopy(self, shared)
        with torch.no_grad():
            for name, module in list(other.unet.named_modules()):
                if name.endswith(".attn2"):
                    module.to_k, module.to_v = (
                        Constant(layer(self.prompt[None])) for layer in (module.to_k, module.to_v)
                    )
        return other


class Constant(nn.Module):
    """In the place of a layer whose input is always the same: its output, (1, n, C)."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.register_buffer("value", value)
        self.value: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(len(x), -1, -1)


def channel_norms(latent: Tensor) -> Tensor:
    """(B, C, H, W) -> Euclidean norms over space, (B, C)."""
    return latent.flatten(2).norm(dim=-1)
