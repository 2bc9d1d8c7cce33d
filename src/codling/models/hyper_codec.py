"""Hyper-encoders for all rates at once: a picture as tokens at several strides, and the coarse picture they stand for.

    image --patches of 8 px, blocks, halving, blocks, ...--> features at strides 8, 16, 32, ...
    features at a stack's stride --head + linear shortcut--> its quantisers, each of what the ones before left over
    indices of the first quantisers --codewords, summed--> blocks that know the level + linear shortcut --> coarse image

A stack of n quantisers makes n rate levels. Stacks share the trunk and, at equal stride, the decoder. A token at stride
s stands for 8x8 samples of the picture shrunk by s / 8, so that all shortcuts are alike.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.errors import ConfigError
from codling.models.vector_quantiser import VectorQuantiser
from codling.nn.convnext import ConvNeXtBlock

# Samples a token stands for, each way, and their number with colours.
PATCH = 8
SAMPLES = 3 * PATCH**2


@dataclass(frozen=True)
class Stack:
    """Residual quantisers (Juang and Gray 1982; Zeghidour et al. 2021) of one map of features.

    stride: pixels a token spans, each way: 8, 16, 32, ... codebook_size: codewords of each quantiser. depth: how many.
    """

    stride: int
    codebook_size: int
    depth: int = 1


@dataclass(frozen=True)
class Level:
    """A rate level: the first `depth` quantisers of a stack."""

    stack: int
    depth: int


@dataclass(frozen=True)
class HyperCodecConfig:
    """stacks: by ascending rate. codeword_width: channels of a codeword.

    widths: channels at strides 8, 16, 32, ... encoder_blocks, decoder_blocks: at each of these strides. embedding:
    width of a level's embedding.
    """

    stacks: tuple[Stack, ...] = (Stack(64, 256), Stack(32, 512, 3), Stack(16, 1024, 4))
    codeword_width: int = 40
    widths: tuple[int, ...] = (96, 128, 160, 128)
    encoder_blocks: tuple[int, ...] = (3, 2, 2, 1)
    decoder_blocks: tuple[int, ...] = (0, 4, 2, 1)
    embedding: int = 32

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.encoder_blocks) == len(self.decoder_blocks):
            raise ConfigError(
                "hyper codec: widths, encoder_blocks and decoder_blocks need one number a stride each, got "
                f"{self.widths}, {self.encoder_blocks} and {self.decoder_blocks}"
            )
        strides = tuple(PATCH << place for place in range(len(self.widths)))
        for stack in self.stacks:
            if stack.stride not in strides or stack.codebook_size < 2 or stack.depth < 1:
                raise ConfigError(
                    f"hyper codec: a stack needs a stride among {strides}, at least 2 codewords and 1 quantiser, got "
                    f"{stack}"
                )
        if not self.stacks:
            raise ConfigError("hyper codec: at least one stack of quantisers is needed, got none")

    @property
    def grid(self) -> int:
        """Picture sides are padded to multiples of this many pixels."""
        return PATCH << (len(self.widths) - 1)

    @property
    def levels(self) -> tuple[Level, ...]:
        """All rate levels, by ascending rate."""
        return tuple(Level(n, depth) for n, stack in enumerate(self.stacks) for depth in range(1, stack.depth + 1))

    def place(self, stack: int) -> int:
        """Which of the strides 8, 16, 32, ... a stack has."""
        return (self.stacks[stack].stride // PATCH).bit_length() - 1


@dataclass(frozen=True)
class Coded:
    """A stack's features quantised: by all of its quantisers, and what the first 1, 2, ... of them make of it.

    inputs: what each quantiser saw, (B, D, h, w). indices: what it answered, (B, h, w), int64. codewords: each level's,
    with the gradient of the features. commitments: of each level, |sg(codewords) - features|^2, mean.
    """

    inputs: list[Tensor]
    indices: list[Tensor]
    codewords: list[Tensor]
    commitments: list[Tensor]


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
            _zero(nn.Conv2d(widths[config.place(n)], width, 1)) for n in range(len(config.stacks))
        )
        self.quantisers = nn.ModuleList(
            nn.ModuleList(VectorQuantiser(stack.codebook_size, width) for _ in range(stack.depth))
            for stack in config.stacks
        )
        self.embedding = nn.Embedding(len(config.levels), config.embedding)
        self.widen = nn.ModuleList(nn.Conv2d(width, widths[p], 1) for p in places)
        self.out = nn.ModuleList(_blocks(widths[p], config.decoder_blocks[p], config.embedding) for p in places)
        self.last = nn.ModuleList(_zero(nn.Conv2d(widths[p], SAMPLES, 1)) for p in places)
        self.back = nn.ModuleList(nn.Conv2d(width, SAMPLES, 1) for _ in places)

    def features(self, image: Tensor) -> list[Tensor]:
        """Image (B, 3, H, W) in [-1, 1], sides multiples of `grid` -> what each stack quantises, (B, D, h, w) each."""
        trunk = []
        h = self.first(F.pixel_unshuffle(image, PATCH))
        for place, blocks in enumerate(self.into):
            if place:
                h = self.down[place - 1](h)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h)
            trunk.append(h)
        places = [self.config.place(stack) for stack in range(len(self.config.stacks))]
        direct = {place: self.shortcut[place](patches(image, place)) for place in set(places)}
        return [head(trunk[place]) + direct[place] for head, place in zip(self.heads, places, strict=True)]

    def quantise(self, features: Tensor, stack: int) -> Coded:
        """A stack's features (B, D, h, w), quantised."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            coded, summed = Coded([], [], [], []), torch.zeros_like(features)
            for quantiser in self.quantisers[stack]:  # type: ignore[attr-defined]
                coded.inputs.append((features - summed).detach())
                coded.indices.append(quantiser.nearest(coded.inputs[-1]))
                summed = summed + quantiser.codewords(coded.indices[-1]).detach()
                coded.codewords.append(features + (summed - features).detach())
                coded.commitments.append(F.mse_loss(features, summed))
        return coded

    def encode(self, image: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """Image -> indices (B, depth, h, w) of each of these levels, int64."""
        features, chosen = self.features(image), [self.config.levels[level] for level in levels]
        coded = {stack: self.quantise(features[stack], stack).indices for stack in {of.stack for of in chosen}}
        return [torch.stack(coded[of.stack][: of.depth], 1) for of in chosen]

    def decode(self, indices: Tensor, level: int) -> Tensor:
        """The coarse image (B, 3, H, W) that indices (B, depth, h, w) of a level stand for."""
        quantisers = self.quantisers[self.config.levels[level].stack]
        maps = zip(quantisers, indices.unbind(1), strict=False)  # type: ignore[call-overload]
        codewords = torch.stack([quantiser.codewords(one) for quantiser, one in maps]).sum(0)
        return self.coarse(codewords, level)

    def coarse(self, codewords: Tensor, level: int) -> Tensor:
        """As `decode`, from sums of codewords (B, D, h, w)."""
        place = self.config.place(self.config.levels[level].stack)
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
            # Which of two signs a component gets is the library's choice; processes that train together need one.
            largest = leading.gather(1, leading.abs().argmax(1, keepdim=True))
            leading = leading * largest.sign()
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
