"""Entropy models as integer frequency tables, coded by constriction's range coder.

A table is a row of integer weights. Frequencies out of 2^24 follow from it by integer arithmetic alone, so that every
machine codes with the same numbers (law 4): `frequencies`. The coder's arithmetic is spelt out in `docs/format.md`.
"""

from functools import cached_property
from typing import TypeAlias

import constriction
import numpy as np

from codling.bitstream.kernels import shares
from codling.errors import FormatError

PRECISION = 24
# Costs of symbols are counted in so many parts of a bit.
PARTS = 1024

Categorical: TypeAlias = constriction.stream.model.Categorical


def frequencies(weights: np.ndarray) -> np.ndarray:
    """Integer weights `(n,)`, 0 to 2^29, not all zero -> frequencies `(n,)` int64 >= 1 that sum to 2^24.

    f_i = 1 + floor(w_i (2^24 - n) / sum w); what rounding leaves goes to the first largest weight.
    """
    return 1 + _shares(weights).astype(np.int64)


def categorical(weights: np.ndarray) -> Categorical:
    """The coder's model of symbols with integer weights, as `frequencies` has them."""
    # constriction gives every symbol 1 and shares out the other 2^24 - n by the numbers it is handed; handing it the
    # frequencies less 1, which sum to exactly that, makes its scale exactly 1.0 and its table ours.
    return Categorical(_shares(weights), perfect=False)


def _shares(weights: np.ndarray) -> np.ndarray:
    """What symbols have of 2^24 parts beside the one that each has."""
    out: np.ndarray = shares(np.asarray(weights, np.int64), (1 << PRECISION) - len(weights))
    return out


def least_cost(most: int) -> int:
    """What a symbol of frequency `most` takes, in 1024ths of a bit, rounded down: integers alone decide it."""
    return PARTS * PRECISION - (most**PARTS - 1).bit_length()


def fit_weights(counts: np.ndarray, *, limit: int = 65_535) -> np.ndarray:
    """Real or integer counts (..., n) -> uint16 weights with the same proportions, the largest of a row at `limit`."""
    scaled = np.rint(counts * (limit / np.maximum(counts.max(-1, keepdims=True), 1e-12)))
    return scaled.astype(np.uint16)


class TableSet:
    """Rows of weights `(contexts, symbols)`; a symbol is coded with the row of its context."""

    def __init__(self, weights: np.ndarray):
        if weights.ndim != 2 or weights.shape[1] < 2 or not (weights.astype(np.int64).sum(1) > 0).all():
            raise ValueError(f"wanted weights (contexts, symbols >= 2) with no empty row, got shape {weights.shape}")
        self.weights = weights

    @property
    def symbols(self) -> int:
        return int(self.weights.shape[1])

    def bits(self, context: int, symbol: int) -> float:
        """Ideal code length of a symbol."""
        return float(PRECISION - np.log2(frequencies(self.weights[context])[symbol]))

    @cached_property
    def _models(self) -> dict[int, Categorical]:
        return {}

    def model(self, context: int) -> Categorical:
        """The coder's model for a context, made on first use."""
        if context not in self._models:
            self._models[context] = categorical(self.weights[context])
        return self._models[context]


class Encoder:
    """A range encoder: `put` symbols, then `finish`."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbol: int, model: Categorical) -> None:
        self._coder.encode(int(symbol), model)

    def finish(self) -> bytes:
        """The shortest bytes that decode to the symbols: 32-bit words, most significant byte first, cut at the end.

        Decoders read zeros past the end, so any number inside the coder's last interval will do; the one with the
        most zero bytes is found by trying. That saves two bytes or so of the coder's own ending.
        """
        whole = self._coder.get_compressed().astype(">u4").tobytes()
        # A number decodes to the symbols just if it lies in the last interval: each lies within the one before. The
        # coder says that interval modulo 2^64; its own ending lies inside.
        words, (lower, width) = self._coder.pos()
        size = 4 * (words + 2)
        inside = _number(whole, size)
        begin = inside - (inside - lower) % 2**64
        for dropped in range(min(8, len(whole)), 0, -1):
            kept = whole[: len(whole) - dropped]
            above = (int.from_bytes(kept, "big") + 1).to_bytes(len(kept) + 1, "big")[1:]
            for candidate in (kept, above):
                if begin <= _number(candidate, size) < begin + width:
                    return candidate.rstrip(b"\0")
        return whole


def _number(data: bytes, size: int) -> int:
    """Bytes, continued with zeros to that size, as an integer."""
    return int.from_bytes(data.ljust(size, b"\0"), "big")


class Decoder:
    """The inverse of `Encoder`. Any bytes decode to something in the models' range, or raise FormatError."""

    def __init__(self, data: bytes):
        padded = data + bytes(-len(data) % 4) + bytes(8)
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def get(self, model: Categorical) -> int:
        try:
            return int(self._coder.decode(model))
        except (AssertionError, ValueError) as error:
            raise FormatError("the coded indices are damaged: no symbol has this code") from error
