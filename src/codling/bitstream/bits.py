"""Fixed-width integers, most significant bit first, zero padded to a whole byte (as in the published CoD)."""

import numpy as np

from codling.errors import FormatError


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` integers of `bits` bits take."""
    return -(-count * bits // 8)


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Integers in [0, 2^bits), any shape, in C order -> bytes. Raises ValueError on a value out of range."""
    flat = np.ascontiguousarray(values).reshape(-1).astype(np.int64)
    if len(flat) and (flat.min() < 0 or flat.max() >> bits):
        raise ValueError(f"values from {flat.min()} to {flat.max()} do not fit {bits} bits")
    planes = flat[:, None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(planes.astype(np.uint8)).tobytes()


def unpack_bits(data: bytes, count: int, bits: int) -> np.ndarray:
    """The inverse: `count` integers, int64. Raises FormatError unless `data` has just their length and zero padding."""
    if len(data) != packed_size(count, bits):
        raise FormatError(f"{count} values of {bits} bits take {packed_size(count, bits)} bytes, got {len(data)}")
    planes = np.unpackbits(np.frombuffer(data, np.uint8))
    if planes[count * bits :].any():
        raise FormatError("padding bits after the last value are not zero")
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    values: np.ndarray = planes[: count * bits].reshape(count, bits).astype(np.int64) @ weights
    return values


class BitWriter:
    """Collects bits, most significant first; `bytes()` pads the last byte with zeros."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self.count = 0

    def put(self, value: int, width: int) -> None:
        """An unsigned integer in `width` bits. Raises ValueError if it does not fit."""
        if not 0 <= value < 1 << width:
            raise ValueError(f"{value} does not fit {width} bits")
        self.extend(np.array([value >> place & 1 for place in range(width - 1, -1, -1)], np.uint8))

    def put_signed(self, value: int) -> None:
        """A small signed integer: |value| ones, a zero, and the sign (1 for negative) unless it is 0."""
        self.put((1 << abs(value)) - 1 << 1, abs(value) + 1)
        if value:
            self.put(int(value < 0), 1)

    def extend(self, bits: np.ndarray) -> None:
        """An array of zeros and ones."""
        self._parts.append(bits.astype(np.uint8))
        self.count += len(bits)

    def append(self, other: "BitWriter") -> None:
        """All bits of another writer."""
        self._parts += other._parts
        self.count += other.count

    def copy(self) -> "BitWriter":
        """A writer with the same bits, to be continued apart."""
        other = BitWriter()
        other.append(self)
        return other

    def to_bytes(self) -> bytes:
        return np.packbits(np.concatenate([np.zeros(0, np.uint8), *self._parts])).tobytes()


class OutOfBitsError(Exception):
    """A reader was asked for more bits than there are: normal where a progressive stream was cut."""


class BitReader:
    """The inverse of `BitWriter`."""

    def __init__(self, data: bytes):
        self._data = np.frombuffer(data, np.uint8)
        self.place = 0

    @property
    def left(self) -> int:
        return 8 * len(self._data) - self.place

    def take(self, width: int) -> int:
        """An unsigned integer of `width` bits. Raises OutOfBitsError past the end."""
        if width > self.left:
            raise OutOfBitsError
        value = 0
        for bit in self.take_array(width):
            value = value << 1 | int(bit)
        return value

    def take_signed(self, most: int) -> int:
        """What `put_signed` wrote. Raises OutOfBitsError past the end, FormatError where it is more than `most`."""
        size = 0
        while self.take(1):
            size += 1
            if size > most:
                raise FormatError(f"a signed number is at most {most} here, got more at bit {self.place}: damaged bits")
        return -size if size and self.take(1) else size

    def take_array(self, count: int) -> np.ndarray:
        """The next `count` bits, or as many as are left."""
        count = min(count, self.left)
        first, end = self.place // 8, -(-(self.place + count) // 8)
        bits = np.unpackbits(self._data[first:end])[self.place - 8 * first :][:count]
        self.place += count
        return bits
