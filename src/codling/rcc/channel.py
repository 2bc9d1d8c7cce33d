"""One step of the channel: what the encoder sends of a target, and what both sides make of it.

A band's coefficients are mixed (permuted, signed, transformed orthonormally), so that every group carries the same
energy and a trellis spends its bits evenly; white noise stays white under all of that. Codewords are drawn from the
predictive prior: with r = g^2 E / sigma^2 expected, a coefficient of the true conditional N(g (x - x_hat), sigma^2) is
distributed like N(0, sigma^2 (1 + r)) to someone who does not know x, and the channel's own noise is 1 / (1 + r) of it.
Here everything is in units of sigma.
"""

import numpy as np

from codling.rcc import trellis
from codling.rcc.plan import Band, Q, shuffle
from codling.rcc.spectral import dct, idct
from codling.rcc.trellis import Search, codewords


def send(
    target: np.ndarray, plan: list[Band], *, memory: int, step: int, search: Search = trellis.search
) -> np.ndarray:
    """The message (groups,) for a target: g (x - x_hat) / sigma, flat over (C, H, W).

    memory: of the trellis. search: on a CPU with one thread, or another; the message is the same.
    """
    if not plan:
        return np.zeros(0, np.uint8)
    mixed = []
    for number, band in enumerate(plan):
        order, signs = shuffle(len(band.members), step=step, band=number)
        mixed.append(dct(target[band.members][order] * signs) / np.float32(_spread(band)))
    share = np.concatenate([np.full(band.groups, _spread(band) ** -2) for band in plan])
    whole = np.concatenate(mixed)
    return search(whole, _starts(plan), share, group_bits(plan), memory=memory, step=step)


def receive(message: np.ndarray, plan: list[Band], *, size: int, memory: int, step: int) -> np.ndarray:
    """What a message says of the target, (size,) float32: zero outside the plan, and where the message is cut."""
    out = np.zeros(size, np.float32)
    if not len(message):
        return out
    words = codewords(message, _starts(plan), group_bits(plan), memory=memory, step=step)
    place = 0
    for number, band in enumerate(plan):
        count = len(band.members)
        known = np.zeros(count, np.float32)
        part = words[place : place + count]
        known[: len(part)] = part * np.float32(_spread(band))
        order, signs = shuffle(count, step=step, band=number)
        back = np.empty(count, np.float32)
        back[order] = idct(known) * signs
        out[band.members] = back
        place += count
        if place >= len(words):
            break
    return out


def group_bits(plan: list[Band]) -> np.ndarray:
    """What each group of a plan sends, (groups,) int64."""
    bits, groups = np.array([(band.bits, band.groups) for band in plan], np.int64).reshape(-1, 2).T
    return np.repeat(bits, groups)


def _spread(band: Band) -> float:
    """Deviation of the predictive prior over that of the posterior: sqrt(1 + r)."""
    return float(np.sqrt(1 + 2 ** (band.log_ratio / Q)))


def _starts(plan: list[Band]) -> np.ndarray:
    """Bounds of all groups in the bands' concatenated members."""
    bounds, place = [np.zeros(1, np.int64)], 0
    for band in plan:
        bounds.append(place + band.starts()[1:])
        place += len(band.members)
    return np.concatenate(bounds)
