"""ConvNeXt block (Liu et al. 2022), with a norm that a condition may scale and shift."""

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, layer norm, two-layer network, residual; the identity at initialisation.

    embedding: width of the condition's embedding, or None for a block without a condition.
    """

    def __init__(self, width: int, embedding: int | None = None):
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.modulation = None if embedding is None else nn.Linear(embedding, 2 * width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        zeros = [self.narrow] if self.modulation is None else [self.narrow, self.modulation]
        for layer in zeros:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, width, h, w), and the embedding (B, embedding) of a block that has a condition -> alike."""
        h = F.layer_norm(self.spatial(x).permute(0, 2, 3, 1), x.shape[1:2])
        if self.modulation is not None:
            scale, shift = self.modulation(embedding)[:, None, None].chunk(2, -1)
            h = h * (1 + scale) + shift
        return x + self.narrow(F.gelu(self.wide(h))).permute(0, 3, 1, 2)
