"""The shared random generator: Philox4x32-10 (Salmon et al. 2011) and Gaussians by table.

Everything a decoder draws comes from here, bit-exact on every machine. A Gaussian is the entry of a 65,536-entry table
of the inverse normal distribution function at (i + 0.5) / 65536, chosen by 16 bits of Philox output: eight a block.
"""

from functools import cache
from importlib import resources

import numpy as np

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
PER_BLOCK = 8
# The counter's last word says what is drawn: steps of reverse channel coding count up from 0, this is start noise.
START_NOISE = 0xFFFFFFFF


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Counters (..., 4) uint32 -> random words (..., 4) uint32."""
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint32), -1, 0)
    for turn in range(ROUNDS):
        k0 = np.uint32(key[0] + turn * KEY_STEPS[0] & 0xFFFFFFFF)
        k1 = np.uint32(key[1] + turn * KEY_STEPS[1] & 0xFFFFFFFF)
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)).astype(np.uint32) ^ c1 ^ k0,
            p1.astype(np.uint32),
            (p0 >> np.uint64(32)).astype(np.uint32) ^ c3 ^ k1,
            p0.astype(np.uint32),
        )
    return np.stack([c0, c1, c2, c3], axis=-1)


@cache
def normal_table() -> np.ndarray:
    """The 65,536 float32 Gaussians in ascending order; stored as the positive half, correctly rounded."""
    data = resources.files("codling.bitstream").joinpath("normal_table.bin").read_bytes()
    positive = np.frombuffer(data, "<f4").astype(np.float32)
    table = np.concatenate([-positive[::-1], positive])
    table.flags.writeable = False
    return table


def gaussians(
    count: int, *, seed: int = 0, stream: int = START_NOISE, chunk: int = 0, candidate: int = 0
) -> np.ndarray:
    """`count` standard normal float32 numbers.

    Philox counter (block, candidate, chunk, stream), key = low and high half of the 64-bit seed; of each of the four
    words the low half gives the first number, the high half the second.
    """
    blocks = -(-count // PER_BLOCK)
    counter = np.empty((blocks, 4), np.uint32)
    counter[:, 0], counter[:, 1:] = np.arange(blocks, dtype=np.uint32), (candidate, chunk, stream)
    words = philox(counter, split_seed(seed))
    halves = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], axis=-1).reshape(-1)
    return normal_table()[halves[:count]]


def split_seed(seed: int) -> tuple[int, int]:
    """Philox key of a 64-bit seed. Raises ValueError outside [0, 2^64)."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"a seed is an integer from 0 to 2^64 - 1, got {seed}")
    return seed & 0xFFFFFFFF, seed >> 32
