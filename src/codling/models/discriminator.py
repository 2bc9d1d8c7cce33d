"""Discriminator of restored pictures: whether each patch looks real, given what the decoder already knew of it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


@dataclass(frozen=True)
class DiscriminatorConfig:
    """widths: channels at strides 2, 4, 8, ..."""

    widths: tuple[int, ...] = (32, 64, 128, 192)


class Discriminator(nn.Module):
    """A convolutional patch discriminator with spectral norm (Miyato et al. 2018), conditional on the coarse image."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        # The image, the coarse one, and their difference in units of its expected size.
        layers, width = [], 9
        for wider in config.widths:
            layers.append(spectral_norm(nn.Conv2d(width, wider, 4, stride=2, padding=1)))
            width = wider
        self.layers = nn.ModuleList(layers)
        self.mix = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.last = spectral_norm(nn.Conv2d(width, 1, 1))

    def forward(self, image: Tensor, coarse: Tensor, scale: Tensor) -> Tensor:
        """Images and coarse images (B, 3, H, W), scale (B, 1, 1, 1) of their difference -> scores (B, 1, h, w)."""
        h = torch.cat([image, coarse, (image - coarse) / scale], 1)
        for layer in (*self.layers, self.mix):
            h = F.leaky_relu(layer(h), 0.2)
        out: Tensor = self.last(h)
        return out


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator (Lim and Ye 2017), a scalar; scores of any shape."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
