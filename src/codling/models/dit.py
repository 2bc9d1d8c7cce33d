"""The diffusion transformers of CoD: a trunk reads noisy patches and the condition, a head writes the velocity.

    x_t --patches--+--> tokens --trunk blocks(t)--> s = silu(s + time) --+--> head --> velocity
    condition -----+-----------------------------------------------------+

In pixel space the head is a NeRF head (one small network a patch); in latent space it is a second transformer whose
blocks are modulated token by token by `s` (decoupled diffusion transformer, DDT).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.errors import ConfigError
from codling.models.heads import NerfHead
from codling.nn.attention import TransformerBlock, patchify, unpatchify
from codling.nn.embeddings import TimeEmbedding, rotary_phases
from codling.nn.norms import modulate

# Patches a NeRF head takes at once without gradients: bounds memory at any picture size, changes nothing else.
HEAD_CHUNK = 512


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a diffusion transformer.

    head: "nerf" (pixel space) or "ddt" (latent space).
    channels: channels of the state (3 for pixels, 4 for Stable Diffusion latents).
    patch: side of a token in the state's own pixels. Tokens finer than the condition map share its places.
    width, heads, blocks: of the trunk. heads must divide width into even multiples of 4.
    head_blocks: blocks of the head.
    head_width, head_mlp_ratio: of the NeRF head's pixel network; the DDT head has the trunk's.
    linear_head: add the plain linear head of a diffusion transformer, which small models learn from first; the
        published ones have none.
    """

    head: str = "nerf"
    channels: int = 3
    patch: int = 16
    width: int = 1152
    heads: int = 16
    blocks: int = 26
    head_blocks: int = 4
    head_width: int = 64
    head_mlp_ratio: int = 2
    linear_head: bool = False

    def __post_init__(self) -> None:
        if self.head not in ("nerf", "ddt"):
            raise ConfigError(f'transformer: head must be "nerf" or "ddt", got {self.head!r}')
        if self.width % (4 * self.heads):
            raise ConfigError(
                f"transformer: width {self.width} over {self.heads} heads must be a multiple of 4 channels a head"
            )


class DDTHead(nn.Module):
    """A transformer over patches, modulated by the trunk's tokens."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        token = config.channels * config.patch**2
        self.embed = nn.Linear(token + config.width, config.width)
        self.blocks = nn.ModuleList(TransformerBlock(config.width, config.heads) for _ in range(config.head_blocks))
        self.norm = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, token)

    def forward(self, patches: Tensor, condition: Tensor, tokens: Tensor, phases: Tensor) -> Tensor:
        """All (B, N, ...) -> (B, N, channels patch^2)."""
        h = self.embed(torch.cat([patches, condition], dim=-1))
        for block in self.blocks:
            h = block(h, tokens, phases)
        shift, scale = self.modulation(tokens).chunk(2, dim=-1)
        out: Tensor = self.out(modulate(self.norm(h), shift, scale))
        return out


class DiffusionTransformer(nn.Module):
    """Noisy state, time and condition -> output of the state's shape (a velocity, unless preconditioned: see `cod`)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        token = config.channels * config.patch**2
        self.embed = nn.Linear(token + config.width, config.width)
        self.time = TimeEmbedding(config.width)
        self.blocks = nn.ModuleList(TransformerBlock(config.width, config.heads) for _ in range(config.blocks))
        self.head: nn.Module
        if config.head == "nerf":
            self.head = NerfHead(
                channels=config.channels,
                token_width=config.width,
                width=config.head_width,
                blocks=config.head_blocks,
                mlp_ratio=config.head_mlp_ratio,
                patch=config.patch,
            )
        else:
            self.head = DDTHead(config)
        self.linear_head = nn.Linear(config.width, token) if config.linear_head else None
        # Start from an output of zero, as diffusion transformers do: the first steps then fit the mean.
        for layer in (self.head.out, self.linear_head):
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """`x` (B, channels, H, W), `t` (B,) in [0, 1], `condition` (B, width, h, w) with a place a token or for
        several of them -> like `x`."""
        return self.output_and_tokens(x, t, condition, block=0)[0]

    def output_and_tokens(self, x: Tensor, t: Tensor, condition: Tensor, *, block: int) -> tuple[Tensor, Tensor]:
        """The output, and the tokens (B, N, width) after so many blocks of the trunk; 0: those that enter it."""
        rows, columns = (side // self.config.patch for side in x.shape[-2:])
        if condition.shape[-2:] != (rows, columns):
            condition = F.interpolate(condition, (rows, columns), mode="nearest")
        patches, c = patchify(x, self.config.patch), condition.flatten(2).transpose(1, 2)
        phases = rotary_phases(self.config.width // self.config.heads, rows, columns, x.device)
        time = self.time(t)[:, None]
        tokens = self.embed(torch.cat([patches, c], dim=-1))
        kept = tokens
        for number, layer in enumerate(self.blocks, 1):
            tokens = layer(tokens, F.silu(time), phases)
            kept = tokens if number == block else kept
        tokens = F.silu(time + tokens)
        if self.config.head == "nerf":
            out = self._pixels(patches.flatten(0, 1), c.flatten(0, 1), tokens.flatten(0, 1)).unflatten(0, (len(x), -1))
        else:
            out = self.head(patches, c, tokens, phases)
        if self.linear_head is not None:
            out = out + self.linear_head(tokens)
        return unpatchify(out, self.config.patch, rows), kept

    def _pixels(self, patches: Tensor, condition: Tensor, tokens: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            out: Tensor = self.head(patches, condition, tokens)
            return out
        pieces = zip(*(part.split(HEAD_CHUNK) for part in (patches, condition, tokens)), strict=True)
        return torch.cat([self.head(*piece) for piece in pieces])
