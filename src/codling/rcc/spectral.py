"""Orthonormal transforms: white noise stays white under them, so a channel can be simulated in any such domain.

Spectral domain of a picture: three orthogonal colour components, each under a two-dimensional DCT-II.
"""

from math import sqrt

import numpy as np

# Rows: gray, red against blue, green against both.
COLOUR = np.array([[1 / 3**0.5] * 3, [1 / 2**0.5, 0, -1 / 2**0.5], [1 / 6**0.5, -2 / 6**0.5, 1 / 6**0.5]], np.float32)


def dct(x: np.ndarray) -> np.ndarray:
    """Orthonormal DCT-II along the last axis, by one complex FFT of the same length (Makhoul 1980)."""
    n = x.shape[-1]
    order = np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)[::-1]])
    turned = np.fft.fft(x[..., order]) * _turn(x, -0.5)
    out = turned.real * sqrt(2 / n)
    out[..., 0] /= sqrt(2)
    return out.astype(x.dtype)


def idct(c: np.ndarray) -> np.ndarray:
    """The inverse of `dct`: orthonormal DCT-III along the last axis."""
    n = c.shape[-1]
    scaled = c * sqrt(n / 2)
    scaled[..., 0] *= sqrt(2)
    # The FFT of the reordered signal has this imaginary part, by symmetry.
    mirrored = np.concatenate([np.zeros_like(scaled[..., :1]), scaled[..., :0:-1]], axis=-1)
    turned = (scaled - 1j * mirrored) * _turn(c, 0.5)
    x = np.fft.ifft(turned).real
    out = np.empty_like(c)
    half = (n + 1) // 2
    out[..., 0::2], out[..., 1::2] = x[..., :half], x[..., half:][..., ::-1]
    return out


def to_spectrum(image: np.ndarray) -> np.ndarray:
    """Picture (3, H, W) -> coefficients (3, H, W): colour components, then DCT along both axes.

    Latents, whose channels are not three colours, keep their components: (C, H, W) -> (C, H, W).
    """
    components = np.einsum("ij,jhw->ihw", COLOUR, image) if len(image) == 3 else image
    return np.stack([dct(dct(plane).T).T for plane in components])


def from_spectrum(coefficients: np.ndarray) -> np.ndarray:
    """The inverse of `to_spectrum`."""
    components = np.stack([idct(idct(plane.T).T) for plane in coefficients])
    return np.einsum("ji,jhw->ihw", COLOUR, components) if len(components) == 3 else components


def _turn(x: np.ndarray, quarter: float) -> np.ndarray:
    """exp(i pi quarter k / n) for the places k of the last axis, in the precision of `x`."""
    n = x.shape[-1]
    turn = np.exp(1j * np.pi * quarter * np.arange(n) / n)
    return turn.astype(np.complex64) if x.dtype == np.float32 else turn
