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
