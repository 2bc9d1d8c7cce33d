"""Transformer blocks on token sequences `(B, N, width)`."""

from torch import Tensor, nn
from torch.nn import functional as F

from codling.nn.embeddings import rotate
from codling.nn.norms import RMSNorm, modulate


class RotaryAttention(nn.Module):
    """Multi-head self-attention with normalised queries and keys and rotary positions."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, phases: Tensor) -> Tensor:
        """`x` (B, N, width), `phases` (N, width // heads // 2) -> (B, N, width)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = rotate(self.q_norm(q), phases), rotate(self.k_norm(k), phases)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020) with two thirds of the hidden width, so that it costs what a plain MLP would."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        hidden = 2 * hidden // 3
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class TransformerBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by a conditioning vector (adaLN, Peebles and Xie 2023).

    The condition is `(B, 1, width)`, one vector a picture, or `(B, N, width)`, one a token (the DDT head).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = RotaryAttention(width, heads)
        self.norm2 = RMSNorm(width)
        self.mlp = GatedMLP(width, int(width * mlp_ratio))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, phases: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1), phases)
        out: Tensor = x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return out


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, H W / patch^2, C patch^2): tokens in raster order, channels first inside a token."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int, rows: int) -> Tensor:
    """The inverse of `patchify` for `rows` rows of tokens."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, -1)), patch)
