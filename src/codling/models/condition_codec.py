"""The condition codec: picture -> indices -> condition map (CoD, section "condition encoder, VQ, condition decoder").

    image (B, 3, H, W) --Encoder--> z (B, D, h, w) --VectorQuantiser--> indices (B, h, w)
    indices --codebook--> z_q (B, D, h, w) --Decoder--> condition (B, C, H / 16, W / 16)

`h = H / stride`: the stride sets the rate, `log2(codebook_size) / stride^2` bits a pixel before entropy coding. The
condition always lives on the transformer's token grid, 16 pixels a token.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from codling.errors import ConfigError
from codling.models.vector_quantiser import VectorQuantiser
from codling.nn.convolution import AttentionBlock, Downsample, ResidualBlock, Upsample

CONDITION_STRIDE = 16
STRIDES = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class ConditionCodecConfig:
    """Shape of a condition codec.

    stride: pixels between indices, one of 4, 8, 16, 32, 64, 128.
    codebook_size: number of codewords; any from 2 up.
    codebook_width: channels of a codeword.
    encoder_width: channels of the encoder's first level (published: 128; the deepest has 4 or 8 times as many).
    decoder_width: channels of the condition map: the transformer's width.
    decoder_blocks: residual blocks of the decoder (published: 4, or 3 in the light variant).
    groups: groups of every group norm; must divide both widths.
    shortcut: linear paths around the encoder (pixels to features) and the decoder (codewords to condition).
        Small models learn several times faster with them; the published ones have none.
    stem_stride: stride of the encoder's first convolution, 1, 2 or 4 (published: 2).
    """

    stride: int = 32
    codebook_size: int = 16
    codebook_width: int = 128
    encoder_width: int = 128
    decoder_width: int = 1152
    decoder_blocks: int = 4
    groups: int = 32
    stem_stride: int = 2
    shortcut: bool = False

    def __post_init__(self) -> None:
        if self.stride not in STRIDES:
            raise ConfigError(f"condition codec: stride {self.stride} is not supported; choose one of {STRIDES}")
        if self.stem_stride not in (1, 2, 4) or self.stem_stride * 2 > self.stride:
            raise ConfigError(
                f"condition codec: stem_stride must be 1, 2 or 4 and less than the stride {self.stride}, got "
                f"{self.stem_stride}"
            )
        if self.stride // self.stem_stride > 64:
            raise ConfigError(f"condition codec: stride {self.stride} needs stem_stride 2 or 4, got {self.stem_stride}")
        if self.codebook_size < 2:
            raise ConfigError(f"condition codec: a codebook needs at least 2 codewords, got {self.codebook_size}")
        for name in ("encoder_width", "decoder_width"):
            if getattr(self, name) % self.groups:
                raise ConfigError(
                    f"condition codec: {name} {getattr(self, name)} is not a multiple of {self.groups} groups; "
                    f"change the width or set groups to a divisor of it"
                )
        if self.stride > 32 and self.decoder_blocks != 4:
            raise ConfigError(
                f"condition codec: stride {self.stride} needs 4 decoder blocks, got {self.decoder_blocks}"
            )


class Encoder(nn.Module):
    """Picture (B, 3, H, W) in [-1, 1] -> features (B, codebook_width, H / stride, W / stride)."""

    def __init__(self, config: ConditionCodecConfig):
        super().__init__()
        halvings = (config.stride // config.stem_stride).bit_length() - 1
        groups, width = config.groups, config.encoder_width
        if config.stem_stride == 4:
            self.stem = nn.Conv2d(3, width, 4, stride=4)
        else:
            self.stem = nn.Conv2d(3, width, 3, stride=config.stem_stride, padding=1)

        layers: list[nn.Module] = []
        for level, multiple in enumerate((1, 1, 2, 2)):
            layers += [ResidualBlock(width, width := multiple * config.encoder_width, groups=groups)]
            layers += [ResidualBlock(width, groups=groups)]
            layers += [Downsample(width)] if level < halvings else []
        # Halvings beyond the fourth come with an attention level each (published: two of them, for stride 128).
        for multiple in (4, 8)[: max(1, halvings - 4)]:
            layers += [ResidualBlock(width, width := multiple * config.encoder_width, groups=groups)]
            layers += [AttentionBlock(width, groups=groups)]
            layers += [ResidualBlock(width, groups=groups), AttentionBlock(width, groups=groups)]
            layers += [Downsample(width)] if halvings > 4 else []
        layers += [ResidualBlock(width, groups=groups), AttentionBlock(width, groups=groups)]
        layers += [ResidualBlock(width, groups=groups)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.head = nn.Conv2d(width, config.codebook_width, 3, padding=1)
        self.shortcut = nn.Conv2d(3, config.codebook_width, config.stride, config.stride) if config.shortcut else None

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.head(F.silu(self.norm(self.layers(self.stem(image)))))
        return features if self.shortcut is None else features + self.shortcut(image)


class Decoder(nn.Module):
    """Codewords (B, codebook_width, h, w) -> condition (B, decoder_width, H / 16, W / 16)."""

    def __init__(self, config: ConditionCodecConfig):
        super().__init__()
        width, groups = config.decoder_width, config.groups
        self.stem = nn.Conv2d(config.codebook_width, width, 3, padding=1)
        # Strides above 32 double the map between the first blocks; strides up to 32 work at the stride of the indices.
        doublings_inside = 2 if config.stride > 32 else 0
        layers: list[nn.Module] = []
        for block in range(config.decoder_blocks):
            layers += [ResidualBlock(width, groups=groups)]
            layers += [AttentionBlock(width, groups=groups)] if block < config.decoder_blocks - 1 else []
            layers += [Upsample(width, groups=groups)] if block < doublings_inside else []
        self.layers = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)

        remaining = config.stride >> doublings_inside
        if remaining >= CONDITION_STRIDE:
            self.head = nn.Sequential(nn.Conv2d(width, width, 3, padding=1))
            self.resize = Upsample(width, groups=groups) if remaining > CONDITION_STRIDE else nn.Identity()
        else:
            self.head = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1))
            while (remaining := 2 * remaining) < CONDITION_STRIDE:
                self.head.append(ResidualBlock(width, groups=groups))
                self.head.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
            self.resize = nn.Identity()
        self.shortcut = nn.Conv2d(config.codebook_width, width, 1) if config.shortcut else None

    def forward(self, codewords: Tensor) -> Tensor:
        condition: Tensor = self.resize(self.head(F.silu(self.norm(self.layers(self.stem(codewords))))))
        if self.shortcut is None:
            return condition
        return condition + F.interpolate(self.shortcut(codewords), condition.shape[-2:], mode="area")


class ConditionCodec(nn.Module):
    """Encoder, quantiser and decoder. Sizes must be multiples of `max(stride, 16)`; codecs pad pictures to that."""

    def __init__(self, config: ConditionCodecConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantiser = VectorQuantiser(config.codebook_size, config.codebook_width)
        self.decoder = Decoder(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Unit gain in every convolution; zero at the end of every residual branch, and of nets with a shortcut."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, AttentionBlock):
                nn.init.zeros_(module.out.weight)
        if self.config.shortcut:
            nn.init.zeros_(self.encoder.head.weight)
            nn.init.zeros_(self.decoder.head[-1].weight)  # type: ignore[arg-type]

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> indices (B, H / stride, W / stride), int64."""
        return self.quantiser.nearest(self.encoder(image))

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w) -> condition (B, decoder_width, H / 16, W / 16)."""
        out: Tensor = self.decoder(self.quantiser.codewords(indices))
        return out
