"""Fits the error table of a diffusion model: how far its estimates are off, by noise level and frequency."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from codling.bitstream.index_tables import fit_index_model
from codling.bitstream.prng import gaussians
from codling.codecs.activity_map import CELLS, CLASSES, Tables, measure
from codling.codecs.backbones import Backbone, padded_state, velocity_of
from codling.codecs.chain import START
from codling.diffusion.guidance import VelocityFunction
from codling.diffusion.posterior import signal_share
from codling.rcc.plan import EDGE_UNITS, LEVELS, ErrorTable, Layout, Q
from codling.rcc.spectral import to_spectrum
from codling.rcc.subbands import to_places

# Noise levels of a table; between them it is interpolated.
TABLE_LEVELS = (
    20, 45, 80, 120, 170, 230, 300, 380, 460, 540, 620, 700, 780, 850, 910, 955, 990, START,
)  # fmt: skip
# Smaller errors than this are as good as none, and keep the logarithm finite.
FLOOR = 1e-8
# Code of the cells whose maps errors are fitted with.
FITTED = 2
# Coefficients of a class from which on it counts in full for the law of its band, and that the law counts for.
TRUST, DRAWN = 1000.0, 50.0


def radial_edges() -> np.ndarray:
    """Four bands an octave, from half waves over 2048 px to the highest frequency."""
    highest = EDGE_UNITS / 2**0.5
    steps = np.arange(0, 4 * np.log2(highest / 2))
    return np.unique(np.concatenate([[0], np.rint(2 * 2 ** (steps / 4))])).astype(np.int32)


def expected_error(tables: Tables) -> float:
    """Squared error a sample that is expected of the estimate from pure noise, for a 256 px square."""
    table = tables.whole
    counts = Layout.make(table.edges, 256, 256).counts
    errors = 2.0 ** (table.at(np.full(table.log_error.shape[1:], START)) / Q)
    return float((errors * counts).sum() / (table.components * counts.sum()))


def calibrate(
    backbone: Backbone, images: Iterable[Tensor], *, conditional: bool, levels: Sequence[int] = TABLE_LEVELS
) -> Tables:
    """The tables from images (1, 3, H, W) in [-1, 1], gone through twice: mean squared errors of estimates.

    conditional: whether the model is given its condition.

    Bands that none of the images has (very low frequencies, of small ones) take the value of the next that was seen.
    Raises ValueError on an iterator, which could be gone through once only.
    """
    if iter(images) is images:
        raise ValueError("calibration goes through the images twice; got an iterator, wanted a list or the like")
    edges, channels = radial_edges(), backbone.channels
    power = Sums(channels, len(edges))
    for image in images:
        state = padded_state(backbone, image)
        layout = Layout.make(edges, *state.shape[-2:])
        power.add(np.square(to_spectrum(state[0].numpy())), layout)
    prior = power.mean()
    # All that a Gaussian says is the power itself, the error of someone who knows nothing.
    measured = [START] if backbone.gaussian else levels
    whole = [Sums(channels, len(edges)) for _ in measured]
    local = [Sums(channels, len(edges) * CLASSES) for _ in measured]
    maps: list[np.ndarray] = []
    for number, image in enumerate(images):
        state = padded_state(backbone, image)
        condition = backbone.condition(image) if conditional else b""
        shape = state.shape[-2] * backbone.stride, state.shape[-1] * backbone.stride
        velocity = velocity_of(backbone, condition, height=shape[0], width=shape[1])
        layout = Layout.make(edges, *state.shape[-2:])
        expected = layout.spread(prior).reshape(state.shape[1:])
        found = [measure(state[0].numpy(), expected, code, backbone.stride) for code in range(1, len(CELLS))]
        maps += [one.classes for one in found]
        places = Layout.local(edges, *state.shape[-2:], classes=CLASSES, activity=found[FITTED - 1].classes)
        for level, sums, local_sums in zip(measured, whole, local, strict=True):
            unknown = state if backbone.gaussian else _error(velocity, state, level, number)
            error = to_spectrum(unknown[0].numpy())
            sums.add(np.square(error), layout)
            local_sums.add(np.square(to_places(error)), places)
    means = np.stack([sums.mean() for sums in whole]), np.stack([sums.by_class(CLASSES) for sums in local])
    table, by_class = (of_gaussians(mean[0], levels) if backbone.gaussian else mean for mean in means)
    errors = ErrorTable(np.array(levels, np.int32), edges, _log(table))
    return Tables(errors, replace(errors, log_error=_log(by_class), classes=CLASSES), fit_index_model(maps, CLASSES))


def of_gaussians(power: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Expected squared errors (levels, C, K) of the posterior mean of Gaussians of power (C, K) at noise levels."""
    signal = np.array([signal_share(level / LEVELS) for level in levels])[:, None, None]
    out: np.ndarray = power * (1 - signal) / (signal * power + 1 - signal) + FLOOR
    return out


def _error(velocity: VelocityFunction, state: Tensor, level: int, number: int) -> Tensor:
    """Of the estimate of a state (1, C, h, w), the one with this number, at a noise level, by shared noise."""
    s = level / LEVELS
    noise = gaussians(state.numel(), seed=zlib.crc32(b"calibration"), stream=number, chunk=level)
    x = (1 - s) * state + s * torch.from_numpy(noise).view(state.shape)
    with torch.inference_mode():
        return x + s * velocity(x, torch.tensor([1 - s])) - state


class Sums:
    """Sums of squares and counts, by component and band."""

    def __init__(self, channels: int, bands: int):
        self.total, self.count = np.zeros((channels, bands)), np.zeros(bands)

    def add(self, squares: np.ndarray, layout: Layout) -> None:
        """Squares (C, H, W) of the coefficients of a layout."""
        self.count += layout.counts
        for component, values in enumerate(squares.reshape(len(squares), -1)):
            self.total[component] += np.bincount(layout.bands, values, minlength=len(self.count))

    def mean(self) -> np.ndarray:
        """(C, K); bands that were never seen have the value of the next that was."""
        seen = np.flatnonzero(self.count)
        nearest = seen.searchsorted(np.arange(len(self.count))).clip(max=len(seen) - 1)
        out: np.ndarray = (self.total[:, seen] / self.count[seen])[:, nearest] + FLOOR
        return out

    def by_class(self, classes: int) -> np.ndarray:
        """(C, K M): means by frequency band and class, drawn towards a power law of the class where little was seen."""
        channels = len(self.total)
        total, count = self.total.reshape(channels, -1, classes), self.count.reshape(-1, classes)
        seen = np.flatnonzero(count.sum(1))
        nearest = seen[seen.searchsorted(np.arange(len(count))).clip(max=len(seen) - 1)]
        octaves = np.arange(classes)
        out = np.empty_like(total)
        for component, band in np.ndindex(channels, len(count)):
            sums, weight = total[component, nearest[band]], count[nearest[band]]
            logs = np.log2(sums / np.maximum(weight, 1) + FLOOR)
            trust = np.minimum(weight, TRUST)
            middle, height = np.average(octaves, weights=trust), np.average(logs, weights=trust)
            spread = (trust * (octaves - middle) ** 2).sum() + trust.sum() * 0.1
            slope = (trust * (octaves - middle) * (logs - height)).sum() / spread
            law = 2.0 ** (height + slope * (octaves - middle))
            out[component, band] = (sums + DRAWN * law) / (weight + DRAWN)
        return out.reshape(channels, -1) + FLOOR


def _log(mean: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.rint(Q * np.log2(mean)).astype(np.int16)
    return out
