"""Convolutional blocks on maps `(B, C, H, W)`."""

from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after group norm and SiLU, around a shortcut (1x1 where the width changes)."""

    def __init__(self, width: int, out_width: int | None = None, *, groups: int = 32):
        super().__init__()
        out_width = out_width or width
        self.norm1 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv1 = nn.Conv2d(width, out_width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_width, eps=1e-6)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.shortcut = nn.Identity() if out_width == width else nn.Conv2d(width, out_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class AttentionBlock(nn.Module):
    """Single-head self-attention between all positions of a map, without positions, around a shortcut."""

    def __init__(self, width: int, *, groups: int = 32):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[-2:])
        out: Tensor = x + self.out(mixed)
        return out


class Downsample(nn.Module):
    """Halve a map by a strided 3x3 convolution, padded at the right and bottom only (as in the VQGAN family)."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Double a map by repetition, then refine it by a residual block."""

    def __init__(self, width: int, *, groups: int = 32):
        super().__init__()
        self.block = ResidualBlock(width, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
