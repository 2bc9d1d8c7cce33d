"""Orthonormal transforms: white noise stays white under them, so a channel can be simulated in any such domain.

Spectral domain of a picture: three orthogonal colour components, each under a two-dimensional DCT-II.
"""

import numpy as np

# Rows: gray, red against blue, green against both.
COLOUR = np.array([[1 / 3**0.5] * 3, [1 / 2**0.5, 0, -1 / 2**0.5], [1 / 6**0.5, -2 / 6**0.5, 1 / 6**0.5]], np.float32)


def dct(x: np.ndarray) -> np.ndarray:
    """Orthonormal DCT-II along the last axis, by one complex FFT of the same length (Makhoul 1980)."""
    n = x.shape[-1]
    order = np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)[::-1]])
    turned = np.fft.fft(x[..., order]) * np.exp(-0.5j * np.pi * np.arange(n) / n)
    out = turned.real * np.sqrt(2 / n)
    out[..., 0] /= np.sqrt(2)
    return out.astype(x.dtype)


def idct(c: np.ndarray) -> np.ndarray:
    """The inverse of `dct`: orthonormal DCT-III along the last axis."""
    n = c.shape[-1]
    scaled = c * np.sqrt(n / 2)
    scaled[..., 0] *= np.sqrt(2)
    # The FFT of the reordered signal has this imaginary part, by symmetry.
    mirrored = np.concatenate([np.zeros_like(scaled[..., :1]), scaled[..., :0:-1]], axis=-1)
    turned = (scaled - 1j * mirrored) * np.exp(0.5j * np.pi * np.arange(n) / n)
    x = np.fft.ifft(turned).real
    out = np.empty_like(c)
    half = (n + 1) // 2
    out[..., 0::2], out[..., 1::2] = x[..., :half], x[..., half:][..., ::-1]
    return out


def to_spectrum(image: np.ndarray) -> np.ndarray:
    """Picture (3, H, W) -> coefficients (3, H, W): colour components, then DCT along both axes."""
    components = np.einsum("ij,jhw->ihw", COLOUR, image)
    return dct(dct(components).swapaxes(1, 2)).swapaxes(1, 2)


def from_spectrum(coefficients: np.ndarray) -> np.ndarray:
    """The inverse of `to_spectrum`."""
    components = idct(idct(coefficients.swapaxes(1, 2)).swapaxes(1, 2))
    return np.einsum("ji,jhw->ihw", COLOUR, components)
