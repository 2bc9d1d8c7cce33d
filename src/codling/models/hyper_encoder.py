"""PerCo's hyper-encoder (Careil et al. 2023, sec. 3.2) as OSCAR uses it: latent to indices, indices to rough latent.

    latent --encoder--> features --[project]--> nearest codeword by angle --[project]--> decoder --> rough latent

All activations are ReLU, all upsampling is by transposed convolution; nothing is normalised but the features.
"""

from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.errors import ConfigError


@dataclass(frozen=True)
class HyperEncoderConfig:
    """A hyper-encoder of one rate.

    stride: latent pixels a token spans, 1, 2, 4 or 8. width, feature_width: published as N and M.
    """

    stride: int
    codebook_size: int
    channels: int = 4
    width: int = 192
    feature_width: int = 320
    codebook_width: int = 32

    def __post_init__(self) -> None:
        if self.stride not in (1, 2, 4, 8):
            raise ConfigError(f"a token of the hyper-encoder spans 1, 2, 4 or 8 latent pixels, got {self.stride}")


class HyperEncoder(nn.Module):
    """Latent (B, C, H, W) -> indices (B, H / stride, W / stride) -> rough latent (B, C, H, W)."""

    def __init__(self, config: HyperEncoderConfig):
        super().__init__()
        self.config = config
        width, features = config.width, config.feature_width
        # Of the three places to halve at, the finest rates use none and coarser ones the last first.
        halvings = int(log2(config.stride))
        here = [place >= 3 - halvings for place in range(3)]
        self.encoder = nn.Sequential(
            down(config.channels, width, halve=here[0]),
            *(Bottleneck(width) for _ in range(3)),
            down(width, width, halve=here[1]),
            *(Bottleneck(width) for _ in range(3)),
            Gate(width),
            down(width, width, halve=here[2]),
            *(Bottleneck(width) for _ in range(3)),
            nn.Conv2d(width, features, 1),
            Gate(features),
        )
        self.codebook = nn.Parameter(F.normalize(torch.randn(config.codebook_size, config.codebook_width), dim=-1))
        same = features == config.codebook_width
        self.project_in = nn.Identity() if same else nn.Linear(features, config.codebook_width)
        self.project_out = nn.Identity() if same else nn.Linear(config.codebook_width, features)
        blocks: list[nn.Module] = []
        for double in here:
            blocks += [up(features, double=double), *(Bottleneck(features) for _ in range(3))]
        self.decoder = nn.Sequential(*blocks, nn.Conv2d(features, config.channels, 1))

    def indices(self, latent: Tensor) -> Tensor:
        """Indices of the codewords at the smallest angle, int64."""
        points = F.normalize(self.project_in(self.encoder(latent).movedim(1, -1)), dim=-1)
        return (points @ self.codebook.T).argmax(-1)

    def latent(self, indices: Tensor) -> Tensor:
        """The rough latent of indices, at whatever scale the network has come to."""
        return self.decoder(self.project_out(F.embedding(indices, self.codebook)).movedim(-1, 1))


def down(width_in: int, width: int, *, halve: bool) -> nn.Module:
    """A convolution that halves the sides, or one of single pixels."""
    return nn.Conv2d(width_in, width, 5, stride=2, padding=2) if halve else nn.Conv2d(width_in, width, 1)


def up(width: int, *, double: bool) -> nn.Module:
    """The counterpart of `down`."""
    if double:
        return nn.ConvTranspose2d(width, width, 5, stride=2, padding=2, output_padding=1)
    return nn.Conv2d(width, width, 1)


class Bottleneck(nn.Module):
    """Residual block at half the width. last_relu: whether an activation follows the sum."""

    def __init__(self, width: int, *, last_relu: bool = False):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width // 2, 1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 1),
        )
        self.last_relu = last_relu

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layers(x)
        return F.relu(x) if self.last_relu else x


class Gate(nn.Module):
    """Simplified attention (Cheng et al. 2020): one branch's features, gated by another's, added to the input."""

    def __init__(self, width: int):
        super().__init__()
        self.value = nn.Sequential(*(Bottleneck(width, last_relu=True) for _ in range(3)))
        self.gate = nn.Sequential(*(Bottleneck(width, last_relu=True) for _ in range(3)), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value(x) * torch.sigmoid(self.gate(x))
