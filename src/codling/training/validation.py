"""What validation of any denoising model is made of: fixed squares, the gain over the linear filter, the sheet."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codling.models.wiener import WienerFilter
from codling.pictures import from_image_array, to_image_array
from codling.swd import swd
from codling.weights.catalogue import embedded_directory
from codling.weights.store import load_parts

# An estimate of the picture from states x = (1 - s) x_1 + s n (B, 3, H, W) and noise fractions s (B,).
Estimate = Callable[[Tensor, Tensor], Tensor]
# Pictures that networks see at once: bounds memory, changes nothing else.
CHUNK = 8


def centre_squares(pictures: list[np.ndarray], crop: int, *, device: torch.device) -> Tensor:
    """The middle of pictures (H, W, 3) uint8, `(n, 3, crop, crop)` in [-1, 1]; small ones are continued."""
    squares = []
    for picture in pictures:
        height, width = picture.shape[:2]
        tall, wide = max(crop - height, 0), max(crop - width, 0)
        padded = np.pad(picture, ((0, tall), (0, wide), (0, 0)), mode="edge")
        top, left = (padded.shape[0] - crop) // 2, (padded.shape[1] - crop) // 2
        squares.append(torch.from_numpy(to_image_array(padded[top : top + crop, left : left + crop])))
    return torch.stack(squares).to(device)


def fixed_noise(shape: torch.Size, *, device: torch.device) -> Tensor:
    """The noise of validation, (n, ...): the same at every validation of a picture."""
    rows = [torch.randn(shape[1:], generator=torch.Generator().manual_seed(number)) for number in range(shape[0])]
    return torch.stack(rows).to(device)


@cache
def linear_filter() -> WienerFilter:
    """The shipped Wiener filter, fitted to photographs: the best that a linear denoiser can do."""
    model = load_parts(embedded_directory() / "linear", device=torch.device("cpu")).model
    assert isinstance(model, WienerFilter)
    return model


def denoising_gain(
    estimate: Estimate, reference: Estimate, images: Tensor, level: float, *, see: Estimate | None = None
) -> float:
    """PSNR of an estimate above that of another in dB, mean over images (n, 3, H, W), at one noise fraction.

    see: what both are given of the noisy state, by default all of it.
    """
    gains: list[Tensor] = []
    noisy = (1 - level) * images + level * fixed_noise(images.shape, device=images.device)
    for image, x in zip(images.split(CHUNK), noisy.split(CHUNK), strict=True):
        noise = x.new_full((len(x),), level)
        seen = x if see is None else see(x, noise)
        errors = [(of(seen, noise).float() - image).square().mean((1, 2, 3)) for of in (reference, estimate)]
        gains.append(10 * (errors[0] / errors[1]).log10())
    return float(torch.cat(gains).mean())


def to_pictures(images: Tensor) -> list[np.ndarray]:
    """Images (n, 3, H, W) in [-1, 1] -> pictures (H, W, 3) uint8, rounded."""
    return [from_image_array(image) for image in images.float().cpu().numpy()]


def distances(originals: Tensor, decoded: Tensor) -> tuple[float, float]:
    """Mean PSNR in dB and mean SWD of 8-bit pictures, from images (n, 3, H, W) in [-1, 1]."""
    pairs = list(zip(to_pictures(originals), to_pictures(decoded), strict=True))
    errors = [float(np.square(a.astype(np.float64) - b).mean()) for a, b in pairs]
    psnr = np.mean([10 * math.log10(255**2 / max(error, 1e-10)) for error in errors])
    return float(psnr), float(np.mean([swd(a, b) for a, b in pairs]))


def write_sheet(path: Path, columns: Sequence[Tensor]) -> None:
    """A picture with a row per image and a column per tensor of images (n, 3, H, W) in [-1, 1]."""
    pictures = [np.concatenate(to_pictures(column), axis=0) for column in columns]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(pictures, axis=1)).save(path)
