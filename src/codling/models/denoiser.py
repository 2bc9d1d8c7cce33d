"""A convolutional denoiser that corrects the Wiener filter, for coding at few bytes: small, any size, all noise levels.

The filter sees the whole picture and does what a linear estimate can; the network adds what its surroundings tell of a
place, at strides 4 and 8. Coarser strides can be configured; what they cost and brought is in `docs/experiments.md`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.errors import ConfigError
from codling.models.condition_codec import CONDITION_STRIDE
from codling.models.wiener import WienerConfig, WienerFilter
from codling.nn.convnext import ConvNeXtBlock

# A velocity at less noise than this would be a quotient of rounding errors.
SMALLEST_NOISE = 1 / 1024


@dataclass(frozen=True)
class DenoiserConfig:
    """widths: channels at strides 4, 8, ... blocks: at each stride on the way down, and again on the way up.

    embedding: width of the embedding of the noise level. tile, overlap: see `codecs.tiling`, in pixels.
    """

    widths: tuple[int, ...] = (64, 128)
    blocks: tuple[int, ...] = (1, 2)
    embedding: int = 96
    filter: WienerConfig = field(default_factory=WienerConfig)
    tile: int = 1024
    overlap: int = 128

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ConfigError(
                f"denoiser: widths and blocks have an entry a stride each, got {self.widths} and {self.blocks}"
            )
        if self.tile % self.grid or self.overlap % self.grid or self.tile < 2 * self.overlap:
            raise ConfigError(
                f"denoiser: tile {self.tile} and overlap {self.overlap} must be multiples of {self.grid} px and the "
                "tile at least twice the overlap"
            )

    @property
    def grid(self) -> int:
        """Picture sides are padded to multiples of this many pixels."""
        return int(4 * 2 ** (len(self.widths) - 1))


class NoiseEmbedding(nn.Module):
    """Sinusoids of the log signal-to-noise ratio, then a two-layer network."""

    FREQUENCIES = 16

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, noise: Tensor) -> Tensor:
        """Noise fractions (B,) -> (B, width)."""
        ratio = torch.logit(noise, eps=1e-3)
        octaves = torch.linspace(-2.5, 1.5, self.FREQUENCIES, device=noise.device).exp()
        phase = ratio[:, None] * octaves
        out: Tensor = self.mlp(torch.cat([phase.cos(), phase.sin()], 1))
        return out


class Denoiser(nn.Module):
    """Estimate of the picture from a state and its noise level: the filter's estimate plus a learned correction."""

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        self.filter = WienerFilter(config.filter)
        self.embedding = NoiseEmbedding(config.embedding)
        self.first = nn.Conv2d(96, widths[0], 1)
        self.last = nn.Conv2d(widths[0], 48, 1)
        self.into = nn.ModuleList(self._blocks(level) for level in range(len(widths)))
        self.out = nn.ModuleList(self._blocks(level) for level in range(len(widths)))
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    @torch.no_grad()
    def begin_as(self, prior: "Denoiser") -> None:
        """Take the weights of a denoiser of the same widths that has no more blocks at any stride: those beyond its own
        begin as the identity. Raises ConfigError on any other."""
        ours, theirs = self.config, prior.config
        if (ours.widths, ours.embedding, ours.filter.knots) != (theirs.widths, theirs.embedding, theirs.filter.knots):
            raise ConfigError(
                f"a denoiser of widths {ours.widths} cannot begin as one of widths {theirs.widths} (embedding "
                f"{ours.embedding}, there {theirs.embedding}; knots {ours.filter.knots}, there {theirs.filter.knots})"
            )
        if any(own < their for own, their in zip(ours.blocks, theirs.blocks, strict=True)):
            raise ConfigError(f"a denoiser of blocks {ours.blocks} cannot begin as one that has more: {theirs.blocks}")
        self.load_state_dict({**self.state_dict(), **prior.state_dict()})

    def _blocks(self, level: int) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(ConvNeXtBlock(config.widths[level], config.embedding) for _ in range(config.blocks[level]))

    def forward(self, x: Tensor, noise: Tensor, hints: Sequence[Tensor] = ()) -> Tensor:
        """Estimate of x_1 from states x = (1 - noise) x_1 + noise n, (B, 3, H, W) with sides in multiples of `grid`.

        noise: (B,) in (0, 1). hints: features added at strides 4, 8, ... on the way down, see `ConditionalDenoiser`.
        """
        with torch.autocast(x.device.type, enabled=False):
            estimate = self.filter(x.float(), noise)
        return self.corrected(x, estimate, noise, hints)

    def corrected(self, x: Tensor, estimate: Tensor, noise: Tensor, hints: Sequence[Tensor] = ()) -> Tensor:
        """An estimate, the filter's or whatever else is known of states, with what the network adds to it."""
        correction: Tensor = self.correction(x, estimate, noise, hints)
        return estimate + self.scale(noise) * correction.float()

    def scale(self, noise: Tensor) -> Tensor:
        """Expected size of the filter's error, (B, 1, 1, 1): the unit of the correction."""
        return self.filter.error(noise).sqrt().view(-1, 1, 1, 1)

    def correction(self, x: Tensor, estimate: Tensor, noise: Tensor, hints: Sequence[Tensor] = ()) -> Tensor:
        """What the network adds to the filter's estimate, in units of `scale`."""
        s = noise.view(-1, 1, 1, 1)
        # Pixels have a variance of about 1/4.
        unit = torch.rsqrt((1 - s).square() / 4 + s.square())
        embedding = self.embedding(noise)
        h = self.first(F.pixel_unshuffle(torch.cat([x * unit, 2 * estimate], 1), 4))
        skips = []
        for level, blocks in enumerate(self.into):
            if level:
                skips.append(h)
                h = self.down[level - 1](h)
            if level < len(hints):
                h = h + hints[level]
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
        for level in range(len(self.out) - 1, -1, -1):
            for block in self.out[level]:  # type: ignore[attr-defined]
                h = block(h, embedding)
            if level:
                h = self.up[level - 1](h) + skips.pop()
        return F.pixel_shuffle(self.last(h), 4)


class ConditionalDenoiser(Denoiser):
    """A denoiser that is given a condition map at stride 16, which it begins without using.

    The map is read at each of the denoiser's strides down to 16: a place of it holds the features of all places that it
    covers there.
    """

    def __init__(self, config: DenoiserConfig, width: int):
        """width: channels of the condition map."""
        super().__init__(config)
        spans = (CONDITION_STRIDE // (4 * 2**level) for level in range(len(config.widths)))
        self.hints = nn.ModuleList(
            nn.Conv2d(width, channels * span**2, 1) for channels, span in zip(config.widths, spans, strict=True) if span
        )
        for hint in self.hints:
            for parameter in hint.parameters():
                nn.init.zeros_(parameter)

    def conditional(self, x: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        """As `forward`, given a condition (B, width, H / 16, W / 16)."""
        estimate: Tensor = self(x, noise, self.read(condition))
        return estimate

    def read(self, condition: Tensor) -> list[Tensor]:
        """The hints of a condition (B, width, H / 16, W / 16)."""
        spans = (CONDITION_STRIDE // (4 * 2**level) for level in range(len(self.hints)))
        return [F.pixel_shuffle(hint(condition), span) for hint, span in zip(self.hints, spans, strict=True)]
