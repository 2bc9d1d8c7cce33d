"""Orthonormal cosine transforms of images, as matrices: exact adjoints, any size, differentiable."""

import math

import torch
from torch import Tensor

# Orthonormal colour components: gray, red against blue, green against both. The same numbers as in `rcc.spectral`.
COLOUR = ((1 / 3**0.5,) * 3, (1 / 2**0.5, 0.0, -1 / 2**0.5), (1 / 6**0.5, -2 / 6**0.5, 1 / 6**0.5))


def dct_matrix(size: int, like: Tensor) -> Tensor:
    """Orthonormal DCT-II, (size, size): coefficients = matrix @ samples."""
    k = torch.arange(size, device=like.device)
    # cos(pi / (2 size) n) has the period 4 size in n, so few cosines are ever computed.
    wave = torch.cos(torch.arange(4 * size, device=like.device, dtype=torch.float64) * (math.pi / (2 * size)))
    matrix = (math.sqrt(2 / size) * wave).to(like.dtype)[k[:, None] * (2 * k + 1) % (4 * size)]
    matrix[0] /= math.sqrt(2)
    return matrix


def to_spectrum(image: Tensor) -> Tensor:
    """Images (B, 3, H, W) -> coefficients (B, 3, H, W): colour components, then the DCT along both axes."""
    rows, columns = (dct_matrix(side, image) for side in image.shape[-2:])
    components = torch.einsum("kc,bchw->bkhw", image.new_tensor(COLOUR), image)
    return rows @ components @ columns.T


def from_spectrum(coefficients: Tensor) -> Tensor:
    """The inverse of `to_spectrum`."""
    rows, columns = (dct_matrix(side, coefficients) for side in coefficients.shape[-2:])
    components = rows.T @ coefficients @ columns
    return torch.einsum("kc,bkhw->bchw", coefficients.new_tensor(COLOUR), components)


def radius(height: int, width: int, like: Tensor) -> Tensor:
    """Frequency of every coefficient in cycles a pixel, (H, W): from 0 to 1 / sqrt(2)."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype) / (2 * height)
    columns = torch.arange(width, device=like.device, dtype=like.dtype) / (2 * width)
    return torch.hypot(rows[:, None], columns)
