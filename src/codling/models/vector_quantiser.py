"""Vector quantiser: features to the nearest codeword, with the straight-through gradient (van den Oord et al. 2017)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Quantised:
    """What the quantiser knows after one pass; losses are unweighted means over positions and channels.

    codewords: (B, D, h, w), with the gradient of the features (straight through).
    indices: (B, h, w), int64.
    commitment: |sg(codeword) - feature|^2, which moves the encoder.
    codebook: |codeword - sg(feature)|^2, which moves the codebook.
    """

    codewords: Tensor
    indices: Tensor
    commitment: Tensor
    codebook: Tensor


class VectorQuantiser(nn.Module):
    """A codebook of `size` codewords of `width` channels."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(size, width).uniform_(-1.0 / size, 1.0 / size))

    def nearest(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> index of the nearest codeword at every position, (B, h, w); in float32 throughout."""
        with torch.autocast(features.device.type, enabled=False):
            points, book = features.float().movedim(1, -1), self.embedding.float()
            # |z - e|^2 = |z|^2 + |e|^2 - 2 z.e, summed in this order: near-ties fall as in the published code.
            distance = points.square().sum(-1, keepdim=True) + book.square().sum(-1) - 2 * points @ book.T
            return distance.argmin(-1)

    def codewords(self, indices: Tensor) -> Tensor:
        """(B, h, w) -> (B, D, h, w)."""
        return F.embedding(indices, self.embedding).movedim(-1, 1)

    def forward(self, features: Tensor) -> Quantised:
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            indices = self.nearest(features)
            nearest = self.codewords(indices)
            return Quantised(
                codewords=features + (nearest - features).detach(),
                indices=indices,
                commitment=F.mse_loss(features, nearest.detach()),
                codebook=F.mse_loss(nearest, features.detach()),
            )
