"""Loss terms of OSCAR: how far a restored picture is from the true one.

Every function takes images (B, 3, H, W) in [-1, 1] and returns an unweighted scalar. Our own terms take the scale
(B, 1, 1, 1) of the error that is expected of the coarse image too, and are in units of it, so that no rate rules the
others; the published ones are as published.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

# Scales of the gradient term: the picture itself, halved, and halved again.
SCALES = 3


@dataclass(frozen=True)
class Restored:
    """Restored and coarse images (B, 3, H, W), and the expected size (B, 1, 1, 1) of the coarse ones' error."""

    image: Tensor
    coarse: Tensor
    scale: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """In the order that the discriminator takes them."""
        return self.image, self.coarse, self.scale


def distances(restored: Restored, image: Tensor) -> dict[str, Tensor]:
    """All terms that need the true images (B, 3, H, W) and nothing else."""
    return {
        "squared": squared(restored.image, image, restored.scale),
        "gradient": gradient(restored.image, image, restored.scale),
        "pixel": pixel(restored.image, image),
        "cosine": cosine(restored.image, image),
    }


def squared(restored: Tensor, image: Tensor, scale: Tensor) -> Tensor:
    """Mean squared error."""
    return ((restored - image) / scale).square().mean()


def pixel(restored: Tensor, image: Tensor) -> Tensor:
    """Mean absolute error (published, second stage)."""
    return (restored - image).abs().mean()


def gradient(restored: Tensor, image: Tensor, scale: Tensor) -> Tensor:
    """Mean absolute error of differences between neighbours, at several scales."""
    error = (restored - image) / scale
    total = error.new_zeros(())
    for number in range(SCALES):
        if number:
            error = F.avg_pool2d(error, 2)
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return total / SCALES


def cosine(restored: Tensor, image: Tensor) -> Tensor:
    """One less the cosine between the pictures, mean over samples and colours (published, second stage)."""
    return 1 - F.cosine_similarity(restored.flatten(2), image.flatten(2), dim=-1).mean()
