"""The activity map of a DiffC stream: where the picture is busy and where it is not.

Photographs are anything but stationary. A sky has a hundredth of the power of the leaves before it at the same
frequency, and to spend the same bits on both is to waste many of them. So the encoder says, for every cell of a grid,
one of a few classes of activity, an octave of power apart; the error tables then hold for each class (`Tables`).
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from codling.bitstream.bits import BitReader, BitWriter, OutOfBitsError, packed_size
from codling.bitstream.indices import IndexModel, decode_indices, encode_indices, index_bits
from codling.errors import FormatError
from codling.models.activity import octaves, whitened
from codling.rcc.plan import LEVELS, ErrorTable, Layout, Q
from codling.rcc.spectral import idct, to_spectrum

# Sides of cells in pixels, by the code in the stream; the first is no map.
CELLS = (0, 128, 64, 32)
CODE_BITS = 2
# In what order codes are tried for streams that end somewhere else than at a length.
CODES_WITHOUT_BUDGET = (2, 3)
# Bytes that a budget has for each cell at least, for codes from 1: finer maps cost more than they bring
# (`docs/diffc.md`). Maps of fewer cells than `FEWEST` say too little for the three bytes that any map costs.
BYTES_A_CELL = (4, 4, 10)
FEWEST = 12
# Classes are octaves of power beside that of the average photograph, from 2^LOWEST on.
CLASSES, LOWEST = 10, -6
# The length of a map in bytes is sent in groups of so many bits, each after a bit that says that there is another.
LENGTH_BITS = 4


@dataclass(frozen=True)
class Tables:
    """What the DiffC streams of a model are planned with.

    whole: errors by noise level and frequency. local: by activity class too, and maps: the integer tables that code
    activity maps; both None in models whose streams have no map.
    """

    whole: ErrorTable
    local: ErrorTable | None = None
    maps: IndexModel | None = None

    def __post_init__(self) -> None:
        if self.local is None and self.maps is None:
            return
        if (
            self.local is None
            or self.maps is None
            or (self.local.classes, self.local.components) != (CLASSES, self.whole.components)
            or len(self.maps.groups) != CLASSES
        ):
            raise ValueError(
                f"tables by activity have {CLASSES} classes, as many components as the others, and come with the "
                "tables of maps"
            )

    def layout(self, activity: "ActivityMap | None", height: int, width: int) -> tuple[ErrorTable, Layout]:
        """The errors and bands of a state (C, height, width): by activity where there is a map of it."""
        if activity is None:
            return self.whole, Layout.make(self.whole.edges, height, width)
        if self.local is None:
            raise ValueError("an activity map needs tables by activity")
        return self.local, activity.layout(self.local, height, width)


@dataclass(frozen=True)
class ActivityMap:
    """code: of `CELLS`, the size of cells. classes: (rows, columns), 0 to CLASSES - 1."""

    code: int
    classes: np.ndarray

    def layout(self, table: ErrorTable, height: int, width: int) -> Layout:
        """The bands of a state (C, height, width)."""
        return Layout.local(table.edges, height, width, classes=table.classes, activity=self.classes)


def grid(code: int, height: int, width: int, stride: int) -> tuple[int, int]:
    """Rows and columns of cells of a state (C, height, width) whose samples cover so many pixels."""
    return -(-height * stride // CELLS[code]), -(-width * stride // CELLS[code])


def cells_for(max_bytes: int | None, height: int, width: int, stride: int) -> int:
    """The code of the finest cells that a budget is enough for, for a state (C, height, width); 0 if none are.

    max_bytes: None if the length is not what decides where the stream ends; then those of the middle size, or if there
    are too few of them the finest.
    """
    for code in CODES_WITHOUT_BUDGET if max_bytes is None else range(len(CELLS) - 1, 0, -1):
        cells = prod(grid(code, height, width, stride))
        if cells >= FEWEST and (max_bytes is None or cells * BYTES_A_CELL[code - 1] <= max_bytes):
            return code
    return 0


def measure(state: np.ndarray, power: np.ndarray, code: int, stride: int) -> ActivityMap:
    """The map of a state (C, H, W). power: (C, H, W), expected squares of its DCT coefficients. code: not 0."""
    height, width = state.shape[1:]
    # Of colours, gray alone: the others follow it.
    used = slice(1) if len(state) == 3 else slice(None)
    white = whitened(torch.from_numpy(to_spectrum(state)[None, used]), torch.from_numpy(power[used]), stride=stride)
    image = np.stack([idct(idct(plane.T).T) for plane in white[0].numpy()])
    rows, columns = grid(code, height, width, stride)
    found = octaves(torch.from_numpy(image)[None], rows, columns)[0].numpy()
    return ActivityMap(code, np.clip(np.rint(found) - LOWEST, 0, CLASSES - 1).astype(np.int64))


def prior_power(table: ErrorTable, height: int, width: int) -> np.ndarray:
    """Expected squares of DCT coefficients, (C, height, width) float32: the errors of someone who knows nothing.

    table: of frequency alone, and of a model without a condition.
    """
    nothing = table.at(np.full(table.log_error.shape[1:], LEVELS - 1))
    spread = Layout.make(table.edges, height, width).spread(2.0 ** (nothing / Q))
    return spread.reshape(table.components, height, width)


def write_map(writer: BitWriter, found: ActivityMap | None, tables: Tables) -> None:
    """A map or its absence; nothing at all where the model's streams have none."""
    if tables.maps is None:
        return
    writer.put(0 if found is None else found.code, CODE_BITS)
    if found is None:
        return
    data = encode_indices(found.classes, CLASSES, tables.maps)
    length = len(data)
    while length >= 1 << LENGTH_BITS:
        writer.put(1, 1)
        writer.put(length % (1 << LENGTH_BITS), LENGTH_BITS)
        length >>= LENGTH_BITS
    writer.put(0, 1)
    writer.put(length, LENGTH_BITS)
    writer.extend(np.unpackbits(np.frombuffer(data, np.uint8)))


def read_map(reader: BitReader, tables: Tables, height: int, width: int, stride: int) -> ActivityMap | None:
    """The inverse, for a state (C, height, width). Raises FormatError, or OutOfBitsError on a cut stream."""
    if tables.maps is None or not (code := reader.take(CODE_BITS)):
        return None
    shape = grid(code, height, width, stride)
    length, place, more = 0, 0, 1
    while more:
        more = reader.take(1)
        length += reader.take(LENGTH_BITS) << place
        place += LENGTH_BITS
        if length > 1 + packed_size(prod(shape), index_bits(CLASSES)):
            raise FormatError(f"an activity map of {shape[0]} x {shape[1]} cells has {length} bytes; it is damaged")
    if place > LENGTH_BITS and length < 1 << place - LENGTH_BITS:
        raise FormatError("the length of the activity map is written longer than it is; it is damaged")
    bits = reader.take_array(8 * length)
    if len(bits) < 8 * length:
        raise OutOfBitsError
    return ActivityMap(code, decode_indices(np.packbits(bits).tobytes(), shape, CLASSES, tables.maps))
