"""Fits the error table of a diffusion model: how far its estimates are off, by noise level and frequency."""

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codling.bitstream.prng import gaussians
from codling.codecs.backbones import Backbone
from codling.codecs.chain import START
from codling.rcc.plan import EDGE_UNITS, LEVELS, ErrorTable, Layout, Q
from codling.rcc.spectral import to_spectrum

# Noise levels of a table; between them it is interpolated.
TABLE_LEVELS = (
    20, 45, 75, 110, 150, 200, 260, 320, 380, 440, 500, 560, 610, 660, 705, 750, 800, 850, 885, 918, 945, 972, 1000,
    START,
)  # fmt: skip
# Smaller errors than this are as good as none, and keep the logarithm finite.
FLOOR = 1e-8


def radial_edges() -> np.ndarray:
    """Four bands an octave, from half waves over 2048 px to the highest frequency."""
    highest = EDGE_UNITS / 2**0.5
    steps = np.arange(0, 4 * np.log2(highest / 2))
    return np.unique(np.concatenate([[0], np.rint(2 * 2 ** (steps / 4))])).astype(np.int32)


def calibrate(
    backbone: Backbone, images: Iterable[Tensor], *, conditional: bool, levels: Sequence[int] = TABLE_LEVELS
) -> ErrorTable:
    """The error table from images (1, 3, H, W) in [-1, 1]: mean squared errors of estimates.

    conditional: whether the model is given its condition.

    Bands that none of the images has (very low frequencies, of small ones) take the value of the next that was seen.
    """
    edges = radial_edges()
    total = np.zeros((len(levels), backbone.channels, len(edges)))
    count = np.zeros(len(edges))
    for number, image in enumerate(images):
        padded = F.pad(
            image, (0, -image.shape[-1] % backbone.grid, 0, -image.shape[-2] % backbone.grid), mode="replicate"
        )
        with torch.inference_mode():
            state = backbone.to_state(padded.to(backbone.device)).float().cpu()
            condition = backbone.condition(image) if conditional else b""
            velocity = backbone.velocity(condition, height=padded.shape[-2], width=padded.shape[-1])
            layout = Layout.make(edges, *state.shape[-2:])
            count += layout.counts
            for place, level in enumerate(levels):
                s = level / LEVELS
                noise = gaussians(state.numel(), seed=zlib.crc32(b"calibration"), stream=number, chunk=level)
                x = (1 - s) * state + s * torch.from_numpy(noise).view(state.shape)
                v = velocity(x.to(backbone.device), torch.tensor([1 - s], device=backbone.device)).float().cpu()
                error = np.square(to_spectrum((x + s * v - state)[0].numpy())).reshape(backbone.channels, -1)
                # One zero more, for bands that would begin past the end.
                sorted_error = np.concatenate([error[:, layout.order], np.zeros((len(error), 1))], 1)
                sums = np.add.reduceat(sorted_error, layout.first[:-1], axis=1)
                # reduceat gives the next entry where a band is empty.
                total[place] += np.where(layout.counts > 0, sums, 0)
    seen = np.flatnonzero(count)
    mean = total[:, :, seen] / count[seen] + FLOOR
    nearest = seen.searchsorted(np.arange(len(edges))).clip(max=len(seen) - 1)
    log_error = np.rint(Q * np.log2(mean))[:, :, nearest].astype(np.int16)
    return ErrorTable(np.array(levels, np.int32), edges, log_error)
