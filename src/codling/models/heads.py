"""The NeRF head of the pixel-space transformer (PixNerd, Wang et al. 2025): a tiny network per patch, written by the
transformer, applied to every pixel of the patch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.nn.norms import RMSNorm

MAX_FREQUENCIES = 8


def position_features(patch: int, device: torch.device) -> Tensor:
    """DCT-like features of a pixel's place in its patch, `(patch^2, 64)`; high diagonal frequencies are damped."""
    place = torch.linspace(0, 1, patch, device=device)
    frequencies = torch.linspace(0, MAX_FREQUENCIES, MAX_FREQUENCIES, device=device)
    waves = torch.cos(place[:, None] * frequencies * torch.pi)
    damping = 1 / (1 + frequencies[:, None] * frequencies)
    # Axes: row, column, horizontal frequency, vertical frequency.
    features = waves[None, :, :, None] * waves[:, None, None, :] * damping
    return features.reshape(patch * patch, -1)


class PixelEmbedding(nn.Module):
    """Pixels with their condition and place -> hidden channels, `(N, P, in_width) -> (N, P, width)`."""

    def __init__(self, in_width: int, width: int):
        super().__init__()
        self.proj = nn.Linear(in_width + MAX_FREQUENCIES**2, width)

    def forward(self, pixels: Tensor, patch: int) -> Tensor:
        # The layer reads [pixels, place]; the second part is the same in every patch, so it is computed once.
        own, shared = self.proj.weight.split([pixels.shape[-1], MAX_FREQUENCIES**2], dim=-1)
        place = F.linear(position_features(patch, pixels.device).to(shared.dtype), shared, self.proj.bias)
        return F.linear(pixels, own) + place


class NerfBlock(nn.Module):
    """A residual MLP over pixels whose two weight matrices are predicted from the patch's token."""

    def __init__(self, token_width: int, width: int, mlp_ratio: int):
        super().__init__()
        self.width, self.hidden = width, width * mlp_ratio
        self.weights = nn.Linear(token_width, 2 * width * self.hidden)
        self.norm = RMSNorm(width)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """`pixels` (N, P, width), `tokens` (N, token_width) -> (N, P, width)."""
        up, down = self.weights(tokens).chunk(2, dim=-1)
        up = F.normalize(up.unflatten(-1, (self.width, self.hidden)), dim=-2)
        down = F.normalize(down.unflatten(-1, (self.hidden, self.width)), dim=-2)
        return pixels + F.silu(self.norm(pixels) @ up) @ down


class NerfHead(nn.Module):
    """Tokens and noisy pixels -> velocity of every pixel."""

    def __init__(self, *, channels: int, token_width: int, width: int, blocks: int, mlp_ratio: int, patch: int):
        super().__init__()
        self.patch = patch
        self.condition = nn.Linear(token_width, width * patch * patch)
        self.embed = PixelEmbedding(channels + width, width)
        self.blocks = nn.ModuleList(NerfBlock(token_width, width, mlp_ratio) for _ in range(blocks))
        self.norm = RMSNorm(width)
        self.out = nn.Linear(width, channels)

    def forward(self, patches: Tensor, condition: Tensor, tokens: Tensor) -> Tensor:
        """`patches` (N, channels patch^2), `condition` and `tokens` (N, token_width) -> (N, channels patch^2)."""
        pixels = torch.cat([patches, self.condition(condition)], dim=-1)
        pixels = self.embed(pixels.unflatten(-1, (-1, self.patch**2)).transpose(1, 2), self.patch)
        for block in self.blocks:
            pixels = block(pixels, tokens)
        velocity: Tensor = self.out(self.norm(pixels))
        return velocity.transpose(1, 2).flatten(1)
