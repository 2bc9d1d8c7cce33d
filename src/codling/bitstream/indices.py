"""Maps of vector-quantiser indices as bytes: context coded, or raw where that is shorter.

The first byte is the mode. RAW: fixed width, most significant bit first. CODED: each index in raster order by the range
coder, as the model of its map predicts it: by a table for its left and upper neighbours, or by a network that sees more
of what is known. It is filled up with zeros to what as many indices of the most frequent kind take, so that a few bytes
cannot claim to be a picture of any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import ClassVar

import numpy as np

from codling.bitstream.bits import pack_bits, packed_size, unpack_bits
from codling.bitstream.context_network import ContextNetwork, bordered, inner
from codling.bitstream.entropy import PARTS, Categorical, Decoder, Encoder, TableSet, frequencies, least_cost
from codling.errors import FormatError


class Mode(IntEnum):
    """First byte of an index payload."""

    RAW = 0
    CODED = 1


@dataclass(frozen=True)
class IndexModel:
    """Integer tables of a model's indices.

    groups: (K,) uint8, the group of each index, 0 to G - 1; the outside of the map is group G.
    weights: ((G + 1)^2, K) uint16; the row of a context is `left group * (G + 1) + upper group`.
    """

    groups: np.ndarray
    weights: np.ndarray

    # Tables know nothing of other maps.
    maps_before: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.weights.shape != ((self.outside + 1) ** 2, len(self.groups)):
            raise ValueError(f"index tables of shape {self.weights.shape} do not fit {len(self.groups)} indices")

    @property
    def outside(self) -> int:
        """The group of positions outside the map: G."""
        return int(self.groups.max()) + 1

    @property
    def symbols(self) -> int:
        """Size of the codebook."""
        return len(self.groups)

    @cached_property
    def least_cost(self) -> int:
        """What the cheapest index of any context takes, in 1024ths of a bit, rounded down."""
        return least_cost(max(int(frequencies(row).max()) for row in self.weights))

    @cached_property
    def tables(self) -> TableSet:
        return TableSet(self.weights)

    def predict(self, known: np.ndarray, number: int, row: int, column: int) -> Categorical:
        """The coder's model of one index of map `number`; all before it in the `bordered` maps are known."""
        return self.tables.model(self.context(inner(known)[number], row, column))

    def context(self, indices: np.ndarray, row: int, column: int) -> int:
        """Row of the table for a position whose left and upper neighbours are known."""
        left = self.groups[indices[row, column - 1]] if column else self.outside
        upper = self.groups[indices[row - 1, column]] if row else self.outside
        return int(left) * (self.outside + 1) + int(upper)


IndexPredictor = IndexModel | ContextNetwork


def index_bits(codebook_size: int) -> int:
    """Bits of an index at fixed width."""
    return (codebook_size - 1).bit_length()


def least_bytes(count: int, models: Sequence[IndexPredictor]) -> int:
    """Bytes of coded maps of `count` indices each, one a model: no fewer, whatever the indices."""
    return count * sum(model.least_cost for model in models) // (8 * PARTS)


def encode_indices(indices: np.ndarray, codebook_size: int, model: IndexPredictor | None) -> bytes:
    """Indices (h, w) in [0, codebook_size) -> bytes, in the shorter of the two modes."""
    return encode_maps(indices[None], codebook_size, None if model is None else [model])


def decode_indices(data: bytes, shape: tuple[int, int], codebook_size: int, model: IndexPredictor | None) -> np.ndarray:
    """The inverse: indices (h, w), int64. Raises FormatError on bytes that `encode_indices` does not write."""
    maps: np.ndarray = decode_maps(data, (1, *shape), codebook_size, None if model is None else [model])
    return maps[0]


def encode_maps(maps: np.ndarray, codebook_size: int, models: Sequence[IndexPredictor] | None) -> bytes:
    """Maps of indices (n, h, w), one after the other, each with a model of its own -> bytes, in the shorter mode."""
    raw = bytes([Mode.RAW]) + pack_bits(maps, index_bits(codebook_size))
    if models is None:
        return raw
    encoder, known = Encoder(), bordered(maps)
    for number, model in enumerate(models):
        for row, column in np.ndindex(*maps.shape[1:]):
            encoder.put(int(maps[number, row, column]), model.predict(known, number, row, column))
    coded = bytes([Mode.CODED]) + encoder.finish().ljust(least_bytes(maps[0].size, models), b"\0")
    return coded if len(coded) < len(raw) else raw


def decode_maps(
    data: bytes, shape: tuple[int, int, int], codebook_size: int, models: Sequence[IndexPredictor] | None
) -> np.ndarray:
    """The inverse: indices (n, h, w), int64. Raises FormatError on bytes that `encode_maps` does not write."""
    if not data:
        raise FormatError("the payload is empty; wanted a mode byte and indices")
    count, bits = int(np.prod(shape)), index_bits(codebook_size)
    if data[0] == Mode.RAW:
        if len(data) - 1 != packed_size(count, bits):
            raise FormatError(
                f"{' x '.join(map(str, shape))} indices take {packed_size(count, bits)} bytes, got {len(data) - 1}"
            )
        values = unpack_bits(data[1:], count, bits).reshape(shape)
        if values.max() >= codebook_size:
            raise FormatError(f"index {values.max()} is outside the codebook of {codebook_size}")
        return values
    if data[0] != Mode.CODED:
        raise FormatError(f"unknown index mode {data[0]}; wanted 0 (raw) or 1 (coded)")
    if models is None:
        raise FormatError("the indices are entropy coded, but the model has no tables")
    if len(data) - 1 > packed_size(count, bits):
        raise FormatError("the coded indices are longer than raw ones, which an encoder never writes")
    least = least_bytes(shape[1] * shape[2], models)
    if len(data) - 1 < least:
        raise FormatError(
            f"{' x '.join(map(str, shape))} coded indices take at least {least} bytes, got {len(data) - 1}: the file "
            "is damaged, or its size is not that of its picture"
        )
    decoder, again, known = Decoder(data[1:]), Encoder(), bordered(np.zeros(shape, np.int64))
    maps = inner(known)
    for number, model in enumerate(models):
        for row, column in np.ndindex(*shape[1:]):
            predicted = model.predict(known, number, row, column)
            maps[number, row, column] = decoder.get(predicted)
            again.put(int(maps[number, row, column]), predicted)
    # Which bytes of its data a range decoder has used only an encoder can say.
    if len(data) - 1 > (wanted := max(len(again.finish()), least)):
        raise FormatError(f"{len(data) - 1 - wanted} bytes follow the coded indices; the file is damaged")
    return np.ascontiguousarray(maps)
