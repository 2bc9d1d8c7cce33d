"""Hyper-encoders for all rates at once: a picture as tokens at several strides, and the coarse picture they stand for.

    image --patches of 8 px, blocks, halving, blocks, ...--> features at strides 8, 16, 32, ...
    features at a level's stride --head + linear shortcut--> VectorQuantiser of the level --> indices (B, h, w)
    indices --codewords, blocks that know the level + linear shortcut--> coarse image (B, 3, H, W)

The rates share the trunk and, at equal stride, the decoder; a level of its own has its codebook, its head and its
embedding. A token at stride s stands for 8x8 samples of the picture shrunk by s / 8, so that all shortcuts are alike.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.errors import ConfigError
from codling.models.vector_quantiser import Quantised, VectorQuantiser
from codling.nn.convnext import ConvNeXtBlock

# Samples a token stands for, each way, and their number with colours.
PATCH = 8
SAMPLES = 3 * PATCH**2


@dataclass(frozen=True)
class Level:
    """stride: pixels a token spans, each way: 8, 16, 32, ... codebook_size: number of codewords."""

    stride: int
    codebook_size: int


@dataclass(frozen=True)
class HyperCodecConfig:
    """levels: by ascending rate. codeword_width: channels of a codeword.

    widths: channels at strides 8, 16, 32, ... encoder_blocks, decoder_blocks: at each of these strides. embedding:
    width of a level's embedding.
    """

    levels: tuple[Level, ...] = (
        Level(64, 256),
        Level(32, 512),
        Level(16, 128),
        Level(16, 1024),
        Level(8, 32),
        Level(8, 64),
        Level(8, 256),
        Level(8, 1024),
    )
    codeword_width: int = 32
    widths: tuple[int, ...] = (96, 128, 160, 128)
    encoder_blocks: tuple[int, ...] = (3, 2, 2, 1)
    decoder_blocks: tuple[int, ...] = (2, 3, 2, 1)
    embedding: int = 32

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.encoder_blocks) == len(self.decoder_blocks):
            raise ConfigError(
                "hyper codec: widths, encoder_blocks and decoder_blocks need one number a stride each, got "
                f"{self.widths}, {self.encoder_blocks} and {self.decoder_blocks}"
            )
        strides = tuple(PATCH << place for place in range(len(self.widths)))
        for level in self.levels:
            if level.stride not in strides or level.codebook_size < 2:
                raise ConfigError(
                    f"hyper codec: a level needs a stride among {strides} and at least 2 codewords, got {level}"
                )
        if not self.levels:
            raise ConfigError("hyper codec: at least one rate level is needed, got none")

    @property
    def grid(self) -> int:
        """Picture sides are padded to multiples of this many pixels."""
        return PATCH << (len(self.widths) - 1)

    def place(self, level: int) -> int:
        """Which of the strides 8, 16, 32, ... a level has."""
        return (self.levels[level].stride // PATCH).bit_length() - 1


class HyperCodec(nn.Module):
    """Images to tokens at any of the levels, and tokens to coarse images."""

    def __init__(self, config: HyperCodecConfig):
        super().__init__()
        self.config = config
        widths, width = config.widths, config.codeword_width
        places = range(len(widths))
        self.first = nn.Conv2d(SAMPLES, widths[0], 1)
        self.into = nn.ModuleList(_blocks(widths[p], config.encoder_blocks[p], None) for p in places)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.shortcut = nn.ModuleList(nn.Conv2d(SAMPLES, width, 1) for _ in places)
        self.heads = nn.ModuleList(
            _zero(nn.Conv2d(widths[config.place(n)], width, 1)) for n in range(len(config.levels))
        )
        self.quantisers = nn.ModuleList(VectorQuantiser(level.codebook_size, width) for level in config.levels)
        self.embedding = nn.Embedding(len(config.levels), config.embedding)
        self.widen = nn.ModuleList(nn.Conv2d(width, widths[p], 1) for p in places)
        self.out = nn.ModuleList(_blocks(widths[p], config.decoder_blocks[p], config.embedding) for p in places)
        self.last = nn.ModuleList(_zero(nn.Conv2d(widths[p], SAMPLES, 1)) for p in places)
        self.back = nn.ModuleList(nn.Conv2d(width, SAMPLES, 1) for _ in places)

    def features(self, image: Tensor) -> list[Tensor]:
        """Image (B, 3, H, W) in [-1, 1], sides multiples of `grid` -> what each level quantises, (B, D, h, w) each."""
        trunk = []
        h = self.first(F.pixel_unshuffle(image, PATCH))
        for place, blocks in enumerate(self.into):
            if place:
                h = self.down[place - 1](h)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h)
            trunk.append(h)
        places = [self.config.place(level) for level in range(len(self.config.levels))]
        direct = {place: self.shortcut[place](patches(image, place)) for place in set(places)}
        return [head(trunk[place]) + direct[place] for head, place in zip(self.heads, places, strict=True)]

    def quantise(self, features: Tensor, level: int) -> Quantised:
        """A level's features (B, D, h, w) -> its codewords, indices and losses."""
        out: Quantised = self.quantisers[level](features)
        return out

    def encode(self, image: Tensor, level: int) -> Tensor:
        """Image -> indices (B, h, w) of a level, int64."""
        out: Tensor = self.quantisers[level].nearest(self.features(image)[level])  # type: ignore[operator]
        return out

    def decode(self, indices: Tensor, level: int) -> Tensor:
        """The coarse image (B, 3, H, W) that indices (B, h, w) of a level stand for."""
        return self.coarse(self.quantisers[level].codewords(indices), level)  # type: ignore[operator]

    def coarse(self, codewords: Tensor, level: int) -> Tensor:
        """As `decode`, from codewords (B, D, h, w)."""
        place = self.config.place(level)
        embedding = self.embedding.weight[level].expand(len(codewords), -1)
        h = self.widen[place](codewords)
        for block in self.out[place]:  # type: ignore[attr-defined]
            h = block(h, embedding)
        small = F.pixel_shuffle((self.last[place](h) + self.back[place](codewords)).float(), PATCH)
        return F.interpolate(small, scale_factor=1 << place, mode="bilinear") if place else small

    @torch.no_grad()
    def fit_shortcuts(self, images: list[Tensor]) -> None:
        """Start from the principal components of images (1, 3, H, W), sides multiples of `grid`: the best linear codec.

        The encoder's shortcuts become the leading components and the decoder's their transposes.
        """
        width = self.config.codeword_width
        for place, (there, back) in enumerate(zip(self.shortcut, self.back, strict=True)):
            total, products, count = torch.zeros(SAMPLES).double(), torch.zeros(SAMPLES, SAMPLES).double(), 0
            for image in images:
                points = patches(image, place).movedim(1, -1).flatten(0, 2).double()
                total, products, count = total + points.sum(0), products + points.T @ points, count + len(points)
            mean = total / count
            _, _, components = torch.linalg.svd(products / count - torch.outer(mean, mean))
            leading = components[:width].float()
            there.weight.copy_(leading[..., None, None])  # type: ignore[operator, union-attr]
            there.bias.copy_(-leading @ mean.float())  # type: ignore[operator, union-attr]
            back.weight.copy_(leading.T[..., None, None])  # type: ignore[operator, union-attr]
            back.bias.copy_(mean.float())  # type: ignore[operator, union-attr]


def patches(image: Tensor, place: int) -> Tensor:
    """Image (B, 3, H, W) shrunk by 2^place, as patches (B, 192, h, w) at stride 8 * 2^place."""
    return F.pixel_unshuffle(F.avg_pool2d(image, 1 << place) if place else image, PATCH)


def _blocks(width: int, count: int, embedding: int | None) -> nn.ModuleList:
    return nn.ModuleList(ConvNeXtBlock(width, embedding) for _ in range(count))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
