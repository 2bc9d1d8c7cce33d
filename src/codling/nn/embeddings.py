"""Embeddings of time and of position."""

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sinusoids of the flow time `t` in [0, 1], then a two-layer network.

    Frequencies run from 1 down to 1/10 (`max_period` 10), as in the published CoD: the flow time spans one unit only,
    so the usual period of 10,000 would waste almost every channel.
    """

    FREQUENCIES = 256
    MAX_PERIOD = 10.0

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        half = self.FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        phase = t.float()[:, None] * torch.exp(-math.log(self.MAX_PERIOD) * steps / half)
        waves = torch.cat([phase.cos(), phase.sin()], dim=-1)
        out: Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        return out


def rotary_phases(head_width: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Phases of two-dimensional rotary positions (Su et al. 2021), `(rows * columns, head_width // 2)` in radians.

    Positions are normalised to the picture: both axes run from 0 to 16 whatever the number of tokens, so that a model
    sees the same range at every size. Channel pairs alternate between the horizontal and the vertical axis.
    """
    x = torch.linspace(0, 16.0, columns, device=device).repeat(rows)
    y = torch.linspace(0, 16.0, rows, device=device).repeat_interleave(columns)
    exponents = torch.arange(0, head_width, 4, device=device)[: head_width // 4].float() / head_width
    frequencies = 1.0 / 10000.0**exponents
    pairs = torch.stack([torch.outer(x, frequencies), torch.outer(y, frequencies)], dim=-1)
    return pairs.reshape(rows * columns, -1)


def rotate(x: Tensor, phases: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of `x` (B, N, heads, head_width) by `phases` (N, head_width // 2)."""
    cos, sin = phases.cos()[:, None], phases.sin()[:, None]
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
