"""Compiled loops over candidates. Each draws Philox words and looks up Gaussians as `bitstream.prng` specifies."""

import numba
import numpy as np

from codling.bitstream.prng import ROUNDS

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_LOW, _HALF = np.uint32(0xFFFF), np.uint32(16)
_WORD = np.uint64(32)


@numba.njit(inline="always")
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Four random words of a counter, all uint32; `bitstream.prng.philox` is the reference."""
    for _ in range(ROUNDS):
        p0, p1 = _M0 * numba.uint64(c0), _M1 * numba.uint64(c2)
        c0, c1, c2, c3 = (
            numba.uint32(numba.uint32(p1 >> _WORD) ^ c1 ^ k0),
            numba.uint32(p1),
            numba.uint32(numba.uint32(p0 >> _WORD) ^ c3 ^ k1),
            numba.uint32(p0),
        )
        k0, k1 = numba.uint32(k0 + _W0), numba.uint32(k1 + _W1)
    return c0, c1, c2, c3


@numba.njit(parallel=True, fastmath=True, cache=True)
def score_group(target, valid, gain, penalty, group, step, k0, k1, table, score):  # type: ignore[no-untyped-def]
    """score[r] = gain z_r . target - penalty |z_r|^2 for every candidate r of a group.

    target, valid: (8 n,) float32, padded with zeros; `valid` is 1 on real dimensions. score: (candidates,), out.
    """
    for candidate in numba.prange(len(score)):
        dot, square = np.float32(0), np.float32(0)
        for block in range(len(target) // 8):
            words = philox(numba.uint32(block), numba.uint32(candidate), group, step, k0, k1)
            for q in range(4):
                low, high = table[words[q] & _LOW], table[words[q] >> _HALF]
                j = 8 * block + 2 * q
                dot += low * target[j] + high * target[j + 1]
                square += low * low * valid[j] + high * high * valid[j + 1]
        score[candidate] = gain * dot - penalty * square


@numba.njit(cache=True)
def extend_paths(value, score, memory, bits, back):  # type: ignore[no-untyped-def]
    """One Viterbi step. A register of memory + bits bits holds the state before (its high bits) and after (its low).

    value: (2^memory,) best score of a path into each state, replaced. back: (2^memory,) uint8, the high bits dropped by
    the best way into each state.
    """
    states = len(value)
    new = np.empty(states, np.float32)
    for state in range(states):
        best, dropped = np.float32(-np.inf), 0
        for high in range(1 << bits):
            register = (high << memory) | state
            reached = value[register >> bits] + score[register]
            if reached > best:
                best, dropped = reached, high
        new[state], back[state] = best, dropped
    value[:] = new
