"""Which coefficients a step codes, in which groups, with how many bits: decided in integers alone.

Encoder and decoder run this on different machines and must agree to the bit, so everything here is a function of
integers: the model's table of log errors, the noise levels and scales in the stream, the picture's size. Logarithms
to base 2 are in units of 1/256 (Q8), rates of coefficients in units of 2^-16 bits. No float decides anything.

Noise levels are integers s out of 1024: the state is x_s = (1 - s/1024) x + (s/1024) noise. A step from s to s' < s in
the variance-preserving form has the posterior N(g x + ..., sigma^2); the ratio g^2 E / sigma^2, E the expected
squared error of the denoiser on a coefficient, says what coding it is worth.
"""

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from math import isqrt

import numpy as np

from codling.bitstream.prng import philox, split_seed
from codling.rcc.spectral import from_spectrum, to_spectrum
from codling.rcc.subbands import boxes, corner, from_places, to_places

LEVELS = 1024
Q = 256
RATE_Q = 1 << 16
# Edges of radial bands are in units of 1/8192 of the sampling frequency.
EDGE_UNITS = 8192
# Ratios within this of each other (a factor of 1.6) are coded together.
BAND_WIDTH = 174
# Which Philox streams shuffle: the counter's chunk word, beside those of groups.
SHUFFLE = 0xFFFFFFFE
# Bits that a message has beyond its rate, for its first groups: the register starts at zero, so that they choose among
# few candidates only.
START_BITS = 10
# Most classes of activity; more would overflow 64 bits in maps of many cells.
MOST_CLASSES = 10
# Most bits a group sends.
MAX_BITS = 8


@dataclass(frozen=True)
class ErrorTable:
    """Expected squared error of a model's denoiser on coefficients, by noise level, radial frequency and activity.

    levels: (L,) ascending noise levels. edges: (K,) ascending radii in units of 1/8192 of the sampling frequency, the
    lower bounds of the frequency bands, the first 0. classes: M, of activity; 1 tells none apart. log_error:
    (L, C, K M) integers, log2 of the error in Q8; band k M + m is frequency band k where the activity has class m.
    """

    levels: np.ndarray
    edges: np.ndarray
    log_error: np.ndarray
    classes: int = 1

    def __post_init__(self) -> None:
        shape = (len(self.levels), *self.log_error.shape[1:2], len(self.edges) * self.classes)
        if self.log_error.shape != shape or not all(
            np.issubdtype(array.dtype, np.integer) for array in (self.levels, self.edges, self.log_error)
        ):
            raise ValueError(f"an error table wants integers of shape {shape}, got {self.log_error.shape}")

    @property
    def components(self) -> int:
        return int(self.log_error.shape[1])

    def at(self, levels: np.ndarray) -> np.ndarray:
        """Q8 (C, K) at a noise level for each component and band, (C, K); interpolated, and held beyond the ends."""
        held = np.clip(levels.astype(np.int64), self.levels[0], self.levels[-1])
        above = np.clip(np.searchsorted(self.levels, held), 1, len(self.levels) - 1)
        low, high = self.levels[above - 1].astype(np.int64), self.levels[above].astype(np.int64)
        first, second = (
            np.take_along_axis(self.log_error.astype(np.int64), place[None], 0)[0] for place in (above - 1, above)
        )
        out: np.ndarray = (first * (high - held) + second * (held - low)) // (high - low)
        return out


@dataclass(frozen=True)
class Layout:
    """The coefficients of one component of a picture, sorted by band.

    bands: (size,) the band of each. order: (size,) their flat indices by (band, index). first: (bands + 1,) where in
    `order` each begins. places: whether coefficients are those of `subbands.to_places`, or the DCT's own.
    """

    bands: np.ndarray
    order: np.ndarray
    first: np.ndarray
    places: bool = False

    @classmethod
    def make(cls, edges: np.ndarray, height: int, width: int) -> "Layout":
        """Bands of frequency alone."""
        return cls._sorted(frequency_bands(edges, height, width), len(edges), places=False)

    @classmethod
    def local(cls, edges: np.ndarray, height: int, width: int, *, classes: int, activity: np.ndarray) -> "Layout":
        """Bands of frequency and activity. activity: (rows, columns) in [0, classes), of a grid of cells."""
        if not 1 <= classes <= MOST_CLASSES or not 0 <= activity.min() <= activity.max() < classes:
            raise ValueError(f"wanted at most {MOST_CLASSES} classes of activity, each below {classes}, got {activity}")
        bands = place_bands(edges, height, width) * classes + spread_activity(activity, height, width)
        return cls._sorted(bands, len(edges) * classes, places=True)

    @classmethod
    def _sorted(cls, bands: np.ndarray, count: int, *, places: bool) -> "Layout":
        flat = bands.ravel()
        counts = np.bincount(flat, minlength=count)
        order = np.argsort(flat, kind="stable").astype(np.int32)
        return cls(flat.astype(np.int16), order, np.concatenate([[0], np.cumsum(counts)]), places)

    def coefficients(self, image: np.ndarray) -> np.ndarray:
        """State (C, H, W) -> its coefficients (C, H, W)."""
        spectrum = to_spectrum(image)
        return to_places(spectrum) if self.places else spectrum

    def image(self, coefficients: np.ndarray) -> np.ndarray:
        """The inverse of `coefficients`."""
        return from_spectrum(from_places(coefficients) if self.places else coefficients)

    @property
    def size(self) -> int:
        return len(self.order)

    @property
    def counts(self) -> np.ndarray:
        """(K,) coefficients of each band."""
        return np.diff(self.first)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """A value for each component and band (C, K) -> one for each coefficient, (C, size) float32."""
        out: np.ndarray = values.astype(np.float32)[:, self.bands]
        return out

    def members(self, component: int, band: int) -> np.ndarray:
        """Flat indices into (C, H, W) of a band of a component, ascending."""
        return component * self.size + self.order[self.first[band] : self.first[band + 1]].astype(np.int64)


@dataclass(frozen=True)
class Band:
    """Coefficients coded together. members: flat indices into (C, H, W), ascending within each radial band.

    log_ratio: Q8, the mean of log2 of g^2 E / sigma^2, scale included. groups: how many the members are cut into.
    bits: what each group sends.
    """

    members: np.ndarray
    log_ratio: int
    groups: int
    bits: int

    def starts(self) -> np.ndarray:
        """(groups + 1,) bounds of the groups among the members; sizes differ by one at most."""
        return np.arange(self.groups + 1) * len(self.members) // self.groups


def plan_step(ratios: np.ndarray, layout: Layout, *, threshold: int, bits: int) -> list[Band]:
    """The bands of a step, in coding order: those of the largest ratio first.

    ratios: log2 of g^2 E / sigma^2 in Q8, (C, K). threshold: Q8, the least ratio worth coding. bits: sent by a
    group, or more where a coefficient deserves more.
    """
    counts = np.broadcast_to(layout.counts, ratios.shape)
    chosen = worth_coding(ratios, layout, threshold)
    if not chosen.any():
        return []
    depth = (ratios[chosen].max() - ratios) // BAND_WIDTH
    plan, carry = [], START_BITS * RATE_Q
    for number in np.unique(depth[chosen]):
        own = chosen & (depth == number)
        members = np.concatenate([layout.members(component, band) for component, band in np.argwhere(own)])
        mean = int((ratios[own] * counts[own]).sum() // counts[own].sum())
        total = coefficient_rate(mean) * len(members) + carry
        # A group has at least one member, so rates above `bits` a coefficient need groups that send more.
        own_bits = min(max(bits, -(-total // (len(members) * RATE_Q))), MAX_BITS)
        if own_bits * RATE_Q > total:
            # Too little for one such group; what there is goes to one group, if it is a bit at all.
            own_bits = max(total // RATE_Q, 1)
        groups, carry = divmod(total, own_bits * RATE_Q)
        groups = min(groups, len(members))
        if groups:
            plan.append(Band(members, mean, groups, own_bits))
    return plan


def worth_coding(ratios: np.ndarray, layout: Layout, threshold: int) -> np.ndarray:
    """Which bands of which components a step codes, (C, K) bool."""
    chosen: np.ndarray = (ratios >= threshold) & (layout.counts > 0)
    return chosen


def scaled(log_error: np.ndarray, scale: int | np.ndarray) -> np.ndarray:
    """Log errors in Q8 with so many half octaves added."""
    return log_error + scale * (Q // 2)


def frequency_bands(edges: np.ndarray, height: int, width: int, *, part: tuple[int, int] | None = None) -> np.ndarray:
    """Number of the radial band of every DCT coefficient, (height, width) int64, exactly; or of the part of the lowest
    frequencies, (rows, columns).

    Coefficient (i, j) has the radius sqrt((i / H)^2 + (j / W)^2) / 2 in units of the sampling frequency; it is in the
    last band whose edge is not above it. With edge e that is j >= W sqrt(4 e^2 / 8192^2 - (i / H)^2).
    """
    rows, columns = part or (height, width)
    # A row takes tens of microseconds, and a malformed file may claim millions of them.
    if rows > columns:
        return np.ascontiguousarray(frequency_bands(edges, width, height, part=(columns, rows)).T)
    places, out = np.arange(columns), []
    for i in range(rows):
        firsts = []
        for edge in edges:
            # j^2 (8192 H)^2 >= (2 e H W)^2 - (8192 i W)^2 =: rest, so j is at least sqrt(rest) / (8192 H).
            rest = (2 * int(edge) * height * width) ** 2 - (EDGE_UNITS * i * width) ** 2
            root = isqrt(rest - 1) + 1 if rest > 0 else 0
            firsts.append(-(-root // (EDGE_UNITS * height)))
        out.append(np.searchsorted(np.array(firsts), places, side="right") - 1)
    return np.stack(out)


def place_bands(edges: np.ndarray, height: int, width: int) -> np.ndarray:
    """Number of the frequency band of every coefficient in places, (height, width) int64, exactly.

    That of a box is its middle's; the corner's coefficients are those of the DCT.
    """
    low = corner(height, width)
    out = np.empty((height, width), np.int64)
    out[: low[0], : low[1]] = frequency_bands(edges, height, width, part=low)
    for box in boxes(height, width):
        # Radius sqrt((y / 2H)^2 + (x / 2W)^2) / 2 of the middle (y, x) / 2, squared and times (8192 4 H W)^2 / 4.
        middle = ((2 * box.top + box.height) * width) ** 2 + ((2 * box.left + box.width) * height) ** 2
        reached = [EDGE_UNITS**2 * middle >= (4 * int(edge) * height * width) ** 2 for edge in edges]
        out[box.at] = sum(reached) - 1
    return out


def spread_activity(activity: np.ndarray, height: int, width: int) -> np.ndarray:
    """Classes of the cells of a grid -> that of every coefficient in places, (height, width) int64.

    Classes are octaves of power. A coefficient has that of the mean power of the cells that its share of the picture
    touches; those without a place, of all cells.
    """
    sums = np.zeros((activity.shape[0] + 1, activity.shape[1] + 1), np.int64)
    sums[1:, 1:] = (1 << activity.astype(np.int64)).cumsum(0).cumsum(1)
    out = np.full((height, width), _octave(sums[-1:, -1:], np.array(activity.size)))
    for box in boxes(height, width):
        top, bottom = _touched(box.height, activity.shape[0])
        left, right = _touched(box.width, activity.shape[1])
        total = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
        out[box.at] = _octave(total, (bottom - top)[:, None] * (right - left))
    return out


def log_gains(levels: np.ndarray, following: int) -> np.ndarray:
    """`log_gain` from each of the noise levels of an array to one that is below all of them."""
    values, places = np.unique(levels, return_inverse=True)
    out: np.ndarray = np.array([log_gain(int(value), following) for value in values])[places].reshape(levels.shape)
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


def shuffle(count: int, *, step: int, band: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
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


def _touched(parts: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """First cell, and one past the last, that each of the equal parts of a side touches."""
    part = np.arange(parts, dtype=np.int64)
    return part * cells // parts, -(-(part + 1) * cells // parts)


def _octave(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """log2(total / count), half up, of integers total >= count: the last k with total / count >= 2^(k - 1/2)."""
    out, twice = np.zeros(np.broadcast_shapes(total.shape, count.shape), np.int64), 2 * total**2
    for k in range(1, MOST_CLASSES):
        out += twice >= (count << k) ** 2
    return out
