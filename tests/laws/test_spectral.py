"""Two implementations of the spectral domain: by FFT in numpy for the coder, by matrices in torch for networks."""

import numpy as np
import pytest
import torch

from codling.nn import spectral as matrices
from codling.rcc import spectral as fourier


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (33, 64), (97, 40)])
def test_they_agree(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).normal(size=(3, *size))
    expected = fourier.to_spectrum(image)
    found = matrices.to_spectrum(torch.from_numpy(image)[None])[0].numpy()
    # The colour matrices are float32 in one and double in the other.
    assert np.abs(found - expected).max() < 1e-6
    back = matrices.from_spectrum(torch.from_numpy(expected)[None])[0].numpy()
    assert np.abs(back - fourier.from_spectrum(expected)).max() < 1e-6
    assert np.abs(back - image).max() < 1e-6


def test_it_is_an_orthonormal_cosine_transform() -> None:
    """A wave of k half periods along the columns is one coefficient of component gray, and energy is kept."""
    wave = np.cos(np.pi * 3 * (np.arange(16) + 0.5) / 16)
    image = np.broadcast_to(wave, (3, 8, 16)).copy()
    spectrum = fourier.to_spectrum(image)
    assert spectrum[0, 0, 3] == pytest.approx(np.linalg.norm(image), rel=1e-6)
    spectrum[0, 0, 3] = 0
    assert np.abs(spectrum).max() < 1e-6
