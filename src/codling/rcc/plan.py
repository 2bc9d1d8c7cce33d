"""Which coefficients a step codes, in which groups, with how many bits: decided in integers alone.

Encoder and decoder run this on different machines and must agree to the bit, so everything here is a function of
integers: the model's table of log errors, the noise levels and the scale in the stream, the picture's size. Logarithms
to base 2 are in units of 1/256 (Q8), rates of coefficients in units of 2^-16 bits. No float decides
anything.

Noise levels are integers s out of 1024: the state is x_s = (1 - s/1024) x + (s/1024) noise. A step from s to s' < s in
the variance-preserving form has the posterior N(g x + ..., sigma^2); the ratio g^2 E / sigma^2, E the expected
squared error of the denoiser on a coefficient, says what coding it is worth.
"""

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache

import numpy as np

from codling.bitstream.prng import philox, split_seed

LEVELS = 1024
Q = 256
RATE_Q = 1 << 16
# Ratios within this of each other (a factor of 1.6) are coded together.
BAND_WIDTH = 174
# Which Philox streams shuffle: the counter's chunk word, beside those of groups.
SHUFFLE = 0xFFFFFFFE


@dataclass(frozen=True)
class ErrorTable:
    """Expected squared error of a model's denoiser on spectral coefficients, by noise level and radial frequency.

    levels: (L,) ascending noise levels. edges: (K,) ascending radii in units of 1/1024 of the sampling frequency, the
    lower bounds of the bands, the first 0. log_error: (L, 3, K) integers, log2 of the error in Q8.
    """

    levels: np.ndarray
    edges: np.ndarray
    log_error: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.levels), 3, len(self.edges))
        if self.log_error.shape != shape or not all(
            np.issubdtype(array.dtype, np.integer) for array in (self.levels, self.edges, self.log_error)
        ):
            raise ValueError(f"an error table wants integers of shape {shape}, got {self.log_error.shape}")

    def at(self, level: int) -> np.ndarray:
        """(3, K) Q8, interpolated between levels and held beyond the ends."""
        above = int(np.searchsorted(self.levels, level))
        if above == 0:
            return self.log_error[0].astype(np.int64)
        if above == len(self.levels):
            return self.log_error[-1].astype(np.int64)
        low, high = int(self.levels[above - 1]), int(self.levels[above])
        first, second = self.log_error[above - 1].astype(np.int64), self.log_error[above].astype(np.int64)
        out: np.ndarray = (first * (high - level) + second * (level - low)) // (high - low)
        return out


@dataclass(frozen=True)
class Band:
    """Coefficients coded together. members: flat indices into (3, H, W), ascending within each class.

    log_ratio: Q8, the mean of log2 of g^2 E / sigma^2, scale included. groups: how many the members are cut into.
    """

    members: np.ndarray
    log_ratio: int
    groups: int

    def starts(self) -> np.ndarray:
        """(groups + 1,) bounds of the groups among the members; sizes differ by one at most."""
        return np.arange(self.groups + 1) * len(self.members) // self.groups


def plan_step(
    table: ErrorTable, classes: np.ndarray, *, level: int, following: int, threshold: int, scale: int, bits: int
) -> list[Band]:
    """The bands of a step, in coding order.

    classes: see `frequency_bands`. level, following: noise levels before and after. threshold: Q8, the least log ratio
    worth coding. scale: half octaves added to every ratio once the coefficients are chosen. bits: bits a group sends.
    """
    components, bands = table.log_error.shape[1:]
    ratios = (table.at(level) + log_gain(level, following)).ravel()
    places = np.arange(components)[:, None, None] * bands + classes
    flat = places.ravel()
    counts = np.bincount(flat, minlength=components * bands)
    chosen = np.nonzero((ratios >= threshold) & (counts > 0))[0]
    if not len(chosen):
        return []
    order = np.argsort(flat, kind="stable")
    first = np.concatenate([[0], np.cumsum(counts)])
    depth = (ratios[chosen].max() - ratios[chosen]) // BAND_WIDTH
    plan, carry = [], 0
    for number in np.unique(depth):
        own = chosen[depth == number]
        members = np.concatenate([order[first[c] : first[c + 1]] for c in own])
        mean = int((ratios[own] * counts[own]).sum() // counts[own].sum()) + scale * Q // 2
        total = coefficient_rate(mean) * len(members) + carry
        groups, carry = divmod(total, bits * RATE_Q)
        groups = min(groups, len(members))
        if groups:
            plan.append(Band(members, mean, groups))
    return plan


def frequency_bands(edges: np.ndarray, height: int, width: int) -> np.ndarray:
    """Number of the radial band of every DCT coefficient, (height, width) int64, by exact integer comparison.

    Coefficient (i, j) has the radius sqrt((i / H)^2 + (j / W)^2) / 2 in units of the sampling frequency; it is in the
    last band whose edge is not above it.
    """
    i, j = np.arange(height, dtype=object)[:, None], np.arange(width, dtype=object)
    # Radius^2 = (i^2 W^2 + j^2 H^2) / (4 H^2 W^2), compared with (edge / 1024)^2.
    square = ((i * width) ** 2 + (j * height) ** 2) * 1024**2
    bounds = [4 * (int(edge) * height * width) ** 2 for edge in edges]
    if max(int(square[-1, -1]), bounds[-1]) < 2**63:
        return np.searchsorted(np.array(bounds, np.int64), square.astype(np.int64), side="right") - 1
    out: np.ndarray = np.sum([square >= bound for bound in bounds], axis=0).astype(np.int64) - 1
    return out


@cache
def log_gain(level: int, following: int) -> int:
    """log2(g^2 / sigma^2) in Q8, rounded down, of the step from one noise level to a smaller one.

    With a = (1024 - s)^2 / ((1024 - s)^2 + s^2) the share of the signal in the variance-preserving form, b = 1 - a, and
    beta = 1 - a/a', it is g^2 / sigma^2 = a' beta / (b b').
    """
    if not 0 < following < level < LEVELS:
        raise ValueError(f"a step goes from a noise level below {LEVELS} to a smaller one, got {level} to {following}")
    signal, after = (LEVELS - level) ** 2, (LEVELS - following) ** 2
    total, total_after = signal + level**2, after + following**2
    # a = signal / total, b = level^2 / total; likewise after the step.
    beta = (after * total - signal * total_after, after * total)
    return _log2_q8(after * beta[0] * total, beta[1] * level**2 * following**2)


@cache
def coefficient_rate(log_ratio: int) -> int:
    """Rate of a coefficient, log2(1 + 2^(log_ratio / 256)) / 2, in units of 2^-16 bits, rounded down."""
    with localcontext() as context:
        context.prec = 40
        ratio = Decimal(2) ** (Decimal(log_ratio) / Q)
        return int((1 + ratio).ln() / Decimal(2).ln() * (RATE_Q // 2))


def shuffle(count: int, *, seed: int, step: int, band: int) -> tuple[np.ndarray, np.ndarray]:
    """A permutation (count,) and signs (count,) float32 from the shared generator: integers sorted, ties by place."""
    counter = np.empty((count, 4), np.uint32)
    counter[:, 0], counter[:, 1:] = np.arange(count, dtype=np.uint32), (band, SHUFFLE, step)
    words = philox(counter, split_seed(seed))
    signs = np.where(words[:, 1] & np.uint32(1), np.float32(1), np.float32(-1))
    return np.argsort(words[:, 0], kind="stable"), signs


def _log2_q8(numerator: int, denominator: int) -> int:
    """floor(256 log2(numerator / denominator)), exact: the 256th power of the fraction against powers of two."""
    top, bottom = numerator**Q, denominator**Q
    guess = top.bit_length() - bottom.bit_length()
    enough = top >= bottom << guess if guess >= 0 else top << -guess >= bottom
    return guess if enough else guess - 1
