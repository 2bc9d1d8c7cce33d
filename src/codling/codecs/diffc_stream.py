"""What a DiffC payload says besides messages: settings, and checksums of the decoder's state."""

from dataclasses import dataclass, replace

import numpy as np

from codling.bitstream.bits import BitReader, BitWriter
from codling.bitstream.prng import philox
from codling.errors import ConfigError, FormatError
from codling.rcc.plan import LEVELS, MAX_BITS, Q
from codling.rcc.trellis import MAX_MEMORY

LEVEL_BITS = 10
MEMORY_BITS, GROUP_BITS, THRESHOLD_BITS, COUNT_BITS = 4, 3, 8, 6
# Thresholds are sent in sixteenths of an octave.
THRESHOLD_UNIT = Q // 16
# How far a picture's errors may be from the table's, in half octaves: a factor of 4096 either way.
LARGEST_SCALE = 24
# What the search of a small stream may look at: candidates in all, with at most so much memory.
CANDIDATES, MOST_MEMORY = 1 << 29, 14
CHECK_BITS = 8
# An estimate is projected on a random direction and rounded to this; its last eight bits are the checksum.
CHECK_UNIT = 1 / 512
# Units that the projections of encoder and decoder may differ by: far above the drift of rounding in networks.
CHECK_SLACK = 2
CHECK_STREAM, CHECK_CHUNK = 0xFFFFFFFE, 0


@dataclass(frozen=True)
class DiffCConfig:
    """How a model's streams are coded unless they say otherwise.

    times: descending noise levels (1024ths) after each step, from nearly all noise to nearly none. threshold: least
    log2 of the ratio g^2 E / sigma^2 worth coding, in sixteenths. memory: of the trellis, in bits; the search has
    2^memory states, and more where a budget is so small that they take no longer (`affordable_memory`). bits: sent by a
    group, or more where a coefficient is worth more.

    These are the model's and not in the stream: check_every: steps between checksums. grain, empty: how the states
    are made that estimates are made from, see `chain.Chain.flow_state`. level: where a stream ends if no rate is asked
    for. steps, sampler: defaults of the decoder.
    """

    times: tuple[int, ...] = (
        972,
        918,
        854,
        799,
        743,
        705,
        664,
        623,
        560,
        500,
        440,
        380,
        320,
        265,
        210,
        160,
        115,
        75,
        45,
    )
    threshold: int = -53
    memory: int = 10
    bits: int = 1
    check_every: int = 4
    grain: float = 1.0
    empty: bool = False
    level: int = 623
    steps: int = 1
    sampler: str = "adams2"

    def __post_init__(self) -> None:
        descending = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
        if not self.times or not descending or self.times[0] >= LEVELS - 1 or self.times[-1] < 1:
            raise ConfigError(
                f"diffc: times must be descending noise levels, at most {LEVELS - 2} and at least 1; got {self.times}"
            )
        if not (len(self.times) < 1 << COUNT_BITS and -(1 << 7) <= self.threshold < 1 << 7):
            raise ConfigError(f"diffc: at most 63 times and a threshold from -128 to 127, got {self}")
        if not (1 <= self.bits <= MAX_BITS and MAX_BITS <= self.memory <= MAX_MEMORY):
            raise ConfigError(
                f"diffc: a trellis sends 1 to {MAX_BITS} bits a group and remembers {MAX_BITS} to {MAX_MEMORY}; "
                f"got {self.bits} and {self.memory}"
            )

    def levels(self, final: int) -> list[int]:
        """Noise levels after each step of a stream that ends at `final`."""
        return [*(level for level in self.times if level > final), final]


def write_settings(writer: BitWriter, final: int, config: DiffCConfig, default: DiffCConfig) -> None:
    """The final noise level, the memory, and what else differs from the model's own settings."""
    writer.put(final, LEVEL_BITS)
    writer.put(config.memory - 1, MEMORY_BITS)
    own = (config.times, config.threshold, config.bits) != (default.times, default.threshold, default.bits)
    writer.put(int(own), 1)
    if own:
        writer.put(config.bits - 1, GROUP_BITS)
        writer.put(config.threshold + (1 << 7), THRESHOLD_BITS)
        writer.put(len(config.times), COUNT_BITS)
        for level in config.times:
            writer.put(level, LEVEL_BITS)


def read_settings(reader: BitReader, default: DiffCConfig) -> tuple[int, DiffCConfig]:
    """The inverse of `write_settings`. Raises FormatError on impossible settings, OutOfBitsError on a cut stream."""
    final, memory = reader.take(LEVEL_BITS), reader.take(MEMORY_BITS) + 1
    times, threshold, bits = default.times, default.threshold, default.bits
    if reader.take(1):
        bits = reader.take(GROUP_BITS) + 1
        threshold = reader.take(THRESHOLD_BITS) - (1 << 7)
        times = tuple(reader.take(LEVEL_BITS) for _ in range(reader.take(COUNT_BITS)))
    try:
        config = replace(default, times=times, threshold=threshold, memory=memory, bits=bits)
    except ConfigError as error:
        raise FormatError(f"the stream's settings are damaged: {error}") from error
    if not 0 < final < LEVELS - 1:
        raise FormatError(f"the stream ends at noise level {final}, wanted 1 to {LEVELS - 2}; it is damaged")
    return final, config


def affordable_memory(max_bytes: int, least: int) -> int:
    """The memory of a stream of so many bytes, mostly of groups of one bit: `least`, or more within `CANDIDATES`."""
    return max(least, min(MOST_MEMORY, (CANDIDATES // (16 * max(max_bytes, 1))).bit_length() - 1))


def write_colours(writer: BitWriter, colours: np.ndarray) -> None:
    """Half octaves (C,), the first of which is 0 and not said."""
    for colour in colours[1:]:
        writer.put_signed(int(colour))


def read_colours(reader: BitReader, count: int) -> np.ndarray:
    """The inverse, (count,). Raises FormatError beyond `LARGEST_SCALE` either way."""
    out = np.array([0, *(reader.take_signed(2 * LARGEST_SCALE) for _ in range(count - 1))])
    if np.abs(out).max() > LARGEST_SCALE:
        raise FormatError(f"scales of colours are from -{LARGEST_SCALE} to {LARGEST_SCALE}, got {out}; it is damaged")
    return out


def read_scale(reader: BitReader, before: int) -> int:
    """The scale of a step, from the change since `before`. Raises FormatError beyond `LARGEST_SCALE` either way."""
    scale = before + reader.take_signed(2 * LARGEST_SCALE)
    if abs(scale) > LARGEST_SCALE:
        raise FormatError(f"a step's scale is from -{LARGEST_SCALE} to {LARGEST_SCALE}, got {scale}; it is damaged")
    return scale


def checksum(estimate: np.ndarray) -> int:
    """Eight bits of a spectral estimate (C, H, W): they agree if two machines computed nearly the same."""
    size = estimate.size
    blocks = -(-size // 128)
    counter = np.empty((blocks, 4), np.uint32)
    counter[:, 0], counter[:, 1:] = np.arange(blocks, dtype=np.uint32), (0, CHECK_CHUNK, CHECK_STREAM)
    words = philox(counter, (0, 0)).astype("<u4")
    signs = np.unpackbits(words.view(np.uint8), bitorder="little")[:size].astype(np.float32) * 2 - 1
    projection = float(np.dot(estimate.ravel().astype(np.float64), signs)) / np.sqrt(size)
    return round(projection / CHECK_UNIT) & ((1 << CHECK_BITS) - 1)


def checksum_agrees(found: int, wanted: int) -> bool:
    """Whether two checksums are those of estimates that differ by rounding only."""
    return (found - wanted + CHECK_SLACK) % (1 << CHECK_BITS) <= 2 * CHECK_SLACK


def message_to_bits(message: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Groups (n,), each below 2^bits of its own -> zeros and ones, most significant first."""
    group, place = _places(bits)
    return (message[group] >> place & 1).astype(np.uint8)


def bits_to_message(sent: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The inverse; groups that `sent` does not have all bits of are left out."""
    whole = int(np.searchsorted(np.cumsum(bits), len(sent), side="right"))
    group, place = _places(bits[:whole])
    message = np.zeros(whole, np.int64)
    np.add.at(message, group, sent[: len(group)].astype(np.int64) << place)
    return message.astype(np.uint8)


def _places(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every bit sent: its group, and its place in the group's number."""
    group = np.repeat(np.arange(len(bits)), bits)
    ends = np.cumsum(bits)
    return group, ends[group] - 1 - np.arange(len(group))
