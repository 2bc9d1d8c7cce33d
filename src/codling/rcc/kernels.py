"""Compiled loops over candidates. Each draws Philox words and looks up Gaussians as `bitstream.prng` specifies.

They run on the caller's thread. Those that search release the interpreter's lock, so that `rcc.threads` can run parts
of the work side by side; numba's own threads are not used: they are either OpenMP's, of which torch brings another copy
into the process, or numba's work queue, which ends the process when two threads call it at once.

A score is a float32 sum in one order on every machine: pairs of dimensions ascending, low * t + high * t' each, every
product and sum rounded, nothing fused (no `fastmath`). So this code, `triton_kernels` and plain numpy give the same
bits, and the same candidate is best everywhere. The inner loops run over candidates, which a compiler can turn into
vector code without touching that order.
"""

import numba
import numpy as np

from codling.bitstream.prng import ROUNDS

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_LOW, _HALF = np.uint32(0xFFFF), np.uint32(16)
_WORD = np.uint64(32)
# Candidates scored side by side: their sums stay in the cache.
TILE = 512


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


@numba.njit(inline="always")
def _eight(values, place):  # type: ignore[no-untyped-def]
    """Eight values from a place on, as scalars: the compiler may then keep them while it writes to an array."""
    own = values[place : place + 8]
    return own[0], own[1], own[2], own[3], own[4], own[5], own[6], own[7]


@numba.njit(cache=True, nogil=True)
def score_candidates(target, valid, gain, penalty, group, step, k0, k1, table, score):  # type: ignore[no-untyped-def]
    """score[r] = gain z_r . target - penalty |z_r|^2 for every candidate r of a group.

    target, valid: (8 n,) float32, padded with zeros; `valid` is 1 on real dimensions. score: (candidates,), out.
    """
    for begin in range(0, len(score), TILE):
        dot = score[begin : begin + TILE]
        square = np.zeros(len(dot), np.float32)
        dot[:] = 0
        for block in range(len(target) // 8):
            t, v = _eight(target, 8 * block), _eight(valid, 8 * block)
            for n in range(len(dot)):
                words = philox(numba.uint32(block), numba.uint32(begin + n), group, step, k0, k1)
                d, s = dot[n], square[n]
                for q in range(4):
                    low, high = table[words[q] & _LOW], table[words[q] >> _HALF]
                    d += low * t[2 * q] + high * t[2 * q + 1]
                    s += low * low * v[2 * q] + high * high * v[2 * q + 1]
                dot[n], square[n] = d, s
        for n in range(len(dot)):
            dot[n] = gain * dot[n] - penalty * square[n]


@numba.njit(cache=True, nogil=True)
def score_groups(target, valid, starts, gain, penalty, counts, first, step, k0, k1, table, scores):  # type: ignore[no-untyped-def]
    """scores[n, :counts[first + n]] = those of group first + n.

    target, valid: padded to whole blocks of eight a group, group i at [starts[i], starts[i + 1]). gain, penalty:
    (groups,) float32. counts: (groups,) candidates of each.
    """
    for n in range(len(scores)):
        i = first + n
        own, real, score = target[starts[i] : starts[i + 1]], valid[starts[i] : starts[i + 1]], scores[n, : counts[i]]
        score_candidates(own, real, gain[i], penalty[i], numba.uint32(i), step, k0, k1, table, score)


@numba.njit(cache=True)
def extend_paths(value, scores, memory, bits, back):  # type: ignore[no-untyped-def]
    """Viterbi steps over groups. A register of memory + bits bits holds the state before in its high bits and after.

    value: (2^memory,) best score of a path into each state, in and out. scores: (n, candidates). bits: (n,) of each
    group. back: (n, 2^memory) uint8, the high bits dropped by the best way into each state, out.
    """
    new = np.empty_like(value)
    for n in range(len(scores)):
        top = np.float32(-np.inf)
        for state in range(len(value)):
            best, dropped = np.float32(-np.inf), 0
            for high in range(1 << bits[n]):
                register = (high << memory) | state
                reached = value[register >> bits[n]] + scores[n, register]
                if reached > best:
                    best, dropped = reached, high
            new[state], back[n, state] = best, dropped
            top = max(top, best)
        # Scores grow with every group; float32 keeps its resolution only if the best stays at zero.
        for state in range(len(value)):
            value[state] = new[state] - top


@numba.njit(cache=True)
def trace_back(value, memory, bits, back, message):  # type: ignore[no-untyped-def]
    """`message` (groups,) uint8 gets the bits of the path that ends in the best state."""
    state = np.int64(np.argmax(value))
    for i in range(len(message) - 1, -1, -1):
        message[i] = state & ((1 << bits[i]) - 1)
        state = ((np.int64(back[i, state]) << memory) | state) >> bits[i]


@numba.njit(cache=True)
def draw_codewords(message, starts, memory, bits, step, k0, k1, table, out):  # type: ignore[no-untyped-def]
    """out[starts[i]:starts[i + 1]] = the candidate of group i that the register names after the group's bits."""
    register = np.int64(0)
    for i in range(len(message)):
        register = ((register << bits[i]) | message[i]) & ((np.int64(1) << (memory + bits[i])) - 1)
        place = starts[i]
        block = 0
        while place < starts[i + 1]:
            words = philox(numba.uint32(block), numba.uint32(register), numba.uint32(i), step, k0, k1)
            for j in range(min(8, starts[i + 1] - place)):
                word = words[j // 2]
                out[place + j] = table[(word >> _HALF) if j & 1 else (word & _LOW)]
            place += 8
            block += 1


@numba.njit(cache=True, nogil=True)
def score_block(target, first, chunk, step, k0, k1, table, score):  # type: ignore[no-untyped-def]
    """score[n] = z . target of candidate first + n of a chunk; target: (8 m,) float32, padded with zeros."""
    for begin in range(0, len(score), TILE):
        dot = score[begin : begin + TILE]
        dot[:] = 0
        for block in range(len(target) // 8):
            t = _eight(target, 8 * block)
            for n in range(len(dot)):
                words = philox(numba.uint32(block), numba.uint32(first + begin + n), chunk, step, k0, k1)
                d = dot[n]
                for q in range(4):
                    d += table[words[q] & _LOW] * t[2 * q] + table[words[q] >> _HALF] * t[2 * q + 1]
                dot[n] = d
