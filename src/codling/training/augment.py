"""Random squares of pictures: cropped, resized and coloured on the device where they are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Shares of the squares. Dark ones are rare among photographs, and night is not to look like nothing known.
SCALED, COLOURED, GRAYSCALE, DARKENED = 0.6, 0.3, 0.03, 0.08


@dataclass(frozen=True)
class Augmentation:
    """What happens to one picture: the square that is cut out in pixels, a flip, a gain per channel, loss of colour."""

    top: int
    left: int
    side: int
    flip: bool
    gain: tuple[float, float, float]
    gray: bool

    @classmethod
    def draw(
        cls, *, height: int, width: int, crop: int, scales: tuple[float, float], rng: np.random.Generator
    ) -> "Augmentation":
        """A random one for a picture of that size. scales: how much a square is enlarged at least and at most."""
        scale = rng.uniform(*scales) if rng.random() < SCALED else 1.0
        side = int(min(height, width, round(crop / scale)))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        flip = bool(rng.random() < 0.5)
        gain = np.ones(3)
        if rng.random() < COLOURED:
            gain = rng.uniform(0.85, 1.15, 3) * rng.uniform(0.8, 1.2)
        if rng.random() < DARKENED:
            gain = gain * rng.uniform(0, 1)
        red, green, blue = gain.tolist()
        return cls(top, left, side, flip, (red, green, blue), bool(rng.random() < GRAYSCALE))


def augmented(
    pictures: Sequence[np.ndarray | Tensor],
    rngs: Sequence[np.random.Generator],
    *,
    crop: int,
    scales: tuple[float, float],
    device: torch.device,
) -> Tensor:
    """A random square of each picture (H, W, 3) uint8, by a generator each: `(B, 3, crop, crop)` in [-1, 1]."""
    chosen = [
        Augmentation.draw(height=picture.shape[0], width=picture.shape[1], crop=crop, scales=scales, rng=rng)
        for picture, rng in zip(pictures, rngs, strict=True)
    ]
    squares = torch.stack([cut(p, a, crop, device) for p, a in zip(pictures, chosen, strict=True)])
    image = squares / 127.5 - 1
    flip = torch.tensor([a.flip for a in chosen], device=device).view(-1, 1, 1, 1)
    image = torch.where(flip, image.flip(-1), image)
    gain = torch.tensor([a.gain for a in chosen], device=device).view(-1, 3, 1, 1)
    image = ((image + 1) * gain - 1).clamp(-1, 1)
    gray = torch.tensor([a.gray for a in chosen], device=device).view(-1, 1, 1, 1)
    return torch.where(gray, image.mean(1, keepdim=True), image)


def cut(picture: np.ndarray | Tensor, augmentation: Augmentation, crop: int, device: torch.device) -> Tensor:
    """The square, resized to `(3, crop, crop)`, float32 from 0 to 255; only its pixels travel to the device."""
    a = augmentation
    part = picture[a.top : a.top + a.side, a.left : a.left + a.side]
    part = torch.from_numpy(part.copy()) if isinstance(part, np.ndarray) else part
    square = part.to(device).permute(2, 0, 1).float()
    if a.side == crop:
        return square
    return F.interpolate(square[None], (crop, crop), mode="bilinear", antialias=True, align_corners=False)[0]
