"""Distances between pictures, always on 8-bit pictures of the same size."""

import math

import numpy as np

from codling.errors import ImageError


def psnr(reference: np.ndarray, decoded: np.ndarray) -> float:
    """PSNR in dB of (H, W, 3) uint8 pictures over all channels; infinite if they are equal.

    Raises ImageError if sizes or types differ: nothing is resized.
    """
    if reference.shape != decoded.shape or reference.dtype != np.uint8 or decoded.dtype != np.uint8:
        raise ImageError(
            f"PSNR compares uint8 pictures of one size, got {reference.dtype} {reference.shape} and "
            f"{decoded.dtype} {decoded.shape}"
        )
    error = float(np.square(reference.astype(np.float64) - decoded).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
