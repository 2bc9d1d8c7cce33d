"""CoD: condition codec and diffusion network as one model."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from codling.errors import ConfigError
from codling.models.condition_codec import CONDITION_STRIDE, ConditionCodec, ConditionCodecConfig
from codling.models.denoiser import SMALLEST_NOISE, ConditionalDenoiser, DenoiserConfig
from codling.models.dit import DiffusionTransformer, TransformerConfig


@dataclass(frozen=True)
class CoDConfig:
    """Shape of a CoD model and how it is best decoded.

    transformer, convolution: the diffusion network, one or the other. A convolution is for pixel space; small models
        learn sooner with it, and it has no patches that could show.
    finisher: a second convolution, which gives the picture of one step texture, see `CoD.finish`; None for none.
    finisher_noise: fraction of noise that it is told and given.
    space: "pixel", or "sd-vae" for Stable Diffusion latents (the autoencoder itself is not part of the model).
    sigma_data: standard deviation of the data if the transformer's output is preconditioned (see `CoD.velocity`), or
        None if it is the velocity itself, as in the published models.
    null: what stands for "nothing known": "black", the condition of a black picture, as published, which black pictures
        then are taken for; or "learned", a vector of its own.
    tile: largest side in pixels that the model sees at once; larger pictures are coded in overlapping tiles.
    overlap: pixels that neighbouring tiles share.
    steps, sampler, guidance, guidance_interval, last_step: defaults of the decoder.
    """

    condition: ConditionCodecConfig = field(default_factory=ConditionCodecConfig)
    transformer: TransformerConfig | None = field(default_factory=TransformerConfig)
    convolution: DenoiserConfig | None = None
    finisher: DenoiserConfig | None = None
    finisher_noise: float = 0.35
    space: str = "pixel"
    sigma_data: float | None = None
    null: str = "black"
    tile: int = 1024
    overlap: int = 128
    steps: int = 25
    sampler: str = "adams2"
    guidance: float = 3.0
    guidance_interval: tuple[float, float] = (0.1, 1.0)
    last_step: float = 0.04

    def __post_init__(self) -> None:
        if self.space not in ("pixel", "sd-vae"):
            raise ConfigError(f'model: space must be "pixel" or "sd-vae", got {self.space!r}')
        if self.null not in ("black", "learned"):
            raise ConfigError(f'model: null must be "black" or "learned", got {self.null!r}')
        if (self.transformer is None) == (self.convolution is None):
            both = "neither" if self.transformer is None else "both"
            raise ConfigError(f"model: wanted a transformer or a convolution, got {both}; set one of them to null")
        if self.convolution is not None and (self.space != "pixel" or self.sigma_data is not None):
            raise ConfigError(
                "model: a convolution is for pixel space and has its own preconditioning; set space to "
                f'"pixel" and sigma_data to null, got {self.space!r} and {self.sigma_data}'
            )
        if self.finisher is not None and self.space != "pixel":
            raise ConfigError(f"model: a finisher is for pixel space, got {self.space!r}; set finisher to null")
        if not 0 < self.finisher_noise < 1:
            raise ConfigError(f"model: finisher_noise must be between 0 and 1, got {self.finisher_noise}")
        if self.transformer is not None:
            self._check_fit(self.transformer)
        grid = self.grid
        if self.tile % grid or self.overlap % grid or self.tile < 2 * self.overlap:
            raise ConfigError(
                f"model: tile {self.tile} and overlap {self.overlap} must be multiples of {grid} px and the tile at "
                "least twice the overlap"
            )

    def _check_fit(self, transformer: TransformerConfig) -> None:
        if self.condition.decoder_width != transformer.width:
            raise ConfigError(
                f"model: the condition decoder writes {self.condition.decoder_width} channels, the transformer reads "
                f"{transformer.width}; make the two widths equal"
            )
        if self.condition_patch % transformer.patch:
            raise ConfigError(
                f"model: a place of the condition map covers {self.condition_patch} pixels a side of the state; patch "
                f"must divide that, got {transformer.patch}"
            )

    @property
    def grid(self) -> int:
        """Picture sides are padded to multiples of this many pixels."""
        networks = (network.grid for network in (self.convolution, self.finisher) if network is not None)
        return max(self.condition.stride, CONDITION_STRIDE, *networks)

    @property
    def channels(self) -> int:
        """Of a state."""
        return 3 if self.transformer is None else self.transformer.channels

    @property
    def state_stride(self) -> int:
        """Pixels a pixel of the state covers."""
        return 1 if self.space == "pixel" else 8

    @property
    def condition_patch(self) -> int:
        """Pixels of the state, a side, that a place of the condition map covers."""
        return CONDITION_STRIDE // self.state_stride


class CoD(nn.Module):
    """The foundation model: `condition_codec` makes indices and conditions, `velocity` denoises."""

    transformer: DiffusionTransformer
    denoiser: ConditionalDenoiser
    finisher: ConditionalDenoiser
    null: Tensor

    def __init__(self, config: CoDConfig):
        super().__init__()
        self.config = config
        self.condition_codec = ConditionCodec(config.condition)
        if config.transformer is not None:
            self.transformer = DiffusionTransformer(config.transformer)
        if config.convolution is not None:
            self.denoiser = ConditionalDenoiser(config.convolution, config.condition.decoder_width)
        if config.finisher is not None:
            self.finisher = ConditionalDenoiser(config.finisher, config.condition.decoder_width)
        if config.null == "learned":
            self.null = nn.Parameter(torch.zeros(config.condition.decoder_width))

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Velocity `x_1 - x_0` at state `x` (B, C, H, W) and time `t` (B,), given a condition map.

        With `sigma_data` the transformer's output F is preconditioned as in EDM (Karras et al. 2022), carried over to
        the flow: for data of variance s^2 and x_t = t x_1 + (1 - t) x_0 the best linear estimate of the velocity is
        c_skip x_t with c_skip = (t s^2 - (1 - t)) / V, V = t^2 s^2 + (1 - t)^2, and its error has variance s^2 / V. So
        v = c_skip x_t + (s / sqrt V) F(x_t / sqrt V): the network starts at that estimate with targets of unit size,
        and at t = 0 the one-step picture x_0 + v = s F does not have to cancel the noise.
        """
        if self.config.transformer is not None:
            return self.velocity_and_tokens(x, t, condition, block=0)[0]
        # At the very end of the flow nothing is left to remove and the quotient would be 0 / 0.
        noise = (1 - t).clamp(min=SMALLEST_NOISE)
        return (self.denoiser.conditional(x, noise, condition) - x) / noise.view(-1, 1, 1, 1)

    def velocity_and_tokens(self, x: Tensor, t: Tensor, condition: Tensor, *, block: int) -> tuple[Tensor, Tensor]:
        """The velocity, and the transformer's tokens (B, N, width) after so many of its trunk's blocks."""
        transformer = self.transformer
        if self.config.sigma_data is None:
            return transformer.output_and_tokens(x, t, condition, block=block)
        s2 = self.config.sigma_data**2
        t4 = t.view(-1, 1, 1, 1)
        variance = t4.square() * s2 + (1 - t4).square()
        c_skip = (t4 * s2 - (1 - t4)) / variance
        network, tokens = transformer.output_and_tokens(x * variance.rsqrt(), t, condition, block=block)
        return c_skip * x + (s2 / variance).sqrt() * network.to(x.dtype), tokens

    def finish(self, image: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of one step, for models with a finisher -> pictures with texture, in one step more.

        Of all pictures with the texture of true ones the nearest (Blau and Michaeli 2018), as far as the finisher
        knows: the mean, which one step gives, is nearer, samples are farther. noise: standard normal, like pictures.
        """
        s = image.new_full((len(image),), self.config.finisher_noise)
        s4 = s.view(-1, 1, 1, 1)
        return self.finisher.corrected((1 - s4) * image + s4 * noise, image, s, self.finisher.read(condition))

    def null_condition(self, *, height: int, width: int) -> Tensor:
        """Condition of "nothing known", `(1, C, height / 16, width / 16)`, see `CoDConfig.null`."""
        if self.config.null == "learned":
            return self.null.view(1, -1, 1, 1).expand(-1, -1, height // CONDITION_STRIDE, width // CONDITION_STRIDE)
        parameter = next(self.parameters())
        black = torch.full((1, 3, height, width), -1.0, device=parameter.device, dtype=parameter.dtype)
        return self.condition_codec.decode(self.condition_codec.encode(black))
