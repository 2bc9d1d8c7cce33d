"""How far the texture of restored pictures is from that of the true ones, wherever in them it lies, as a loss term.

The distance that `codling.swd` measures, on tensors and with a gradient: between the patches of the two pictures, along
directions drawn anew for each step. Beside a squared error, it is the trade of distortion against perception itself
(Blau and Michaeli 2018): of all pictures with the right texture, the nearest. There is no adversary that could diverge.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from codling.swd import KERNEL, PATCH, SMALLEST_SIDE

# Patches of a picture at a level of the pyramid, and directions of a step.
PATCHES = 4096
DIRECTIONS = 32
# Deviation of a band, for pictures in [-1, 1], below which nobody sees it: a sky is not to be given the noise of its
# grain at all costs.
FAINT = 0.01


def sliced(restored: Tensor, image: Tensor, generator: torch.Generator) -> Tensor:
    """Mean 1-Wasserstein distance of projected patches: of images (B, 3, H, W) of at least 32 px a side, a scalar.

    Each sample is compared with its own true picture, in units of that one's deviation in each colour of each band of
    the Laplacian pyramid. The low-pass rest does not count: what is so large has a place. generator: on the CPU.
    """
    unit = torch.randn(DIRECTIONS, 3, PATCH, PATCH, generator=generator)
    unit = (unit / unit.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).to(image)
    distances = []
    for made, true in zip(bands(restored.to(image)), bands(image), strict=True):
        deviation = true.std(dim=(2, 3), keepdim=True).clamp(min=FAINT)
        rows, columns = (side - PATCH + 1 for side in true.shape[2:])
        stride = max(1, math.ceil(math.sqrt(rows * columns / PATCHES)))
        top, left = (int(torch.randint(stride, (), generator=generator)) for _ in range(2))
        ordered = [
            F.conv2d((band / deviation)[..., top:, left:], unit, stride=stride).flatten(2).sort(dim=2).values
            for band in (made, true)
        ]
        distances.append((ordered[0] - ordered[1]).abs().mean())
    return torch.stack(distances).mean()


def bands(image: Tensor) -> list[Tensor]:
    """Images (B, 3, H, W) -> the bands of their Laplacian pyramids as in `codling.swd`, finest first, without the rest.

    Raises ValueError if the pictures are smaller than 32 px a side.
    """
    found = []
    while min(image.shape[2:]) >= 2 * SMALLEST_SIDE:
        smaller = _blur(image)[..., ::2, ::2]
        spread, weight = torch.zeros_like(image), torch.zeros_like(image[:1, :1])
        spread[..., ::2, ::2], weight[..., ::2, ::2] = smaller, 1
        found.append(image - _blur(spread) / _blur(weight))
        image = smaller
    if not found:
        raise ValueError(f"pictures need at least {2 * SMALLEST_SIDE} px a side, got {tuple(image.shape)}")
    return found


def _blur(image: Tensor) -> Tensor:
    """Binomial blur, the border reflected."""
    channels = image.shape[1]
    kernel = torch.from_numpy(KERNEL).to(image)
    padded = F.pad(image, (2, 2, 2, 2), mode="reflect")
    across = F.conv2d(padded, kernel.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, kernel.view(-1, 1).expand(channels, 1, -1, 1), groups=channels)
