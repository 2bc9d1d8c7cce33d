"""Compiled loops over candidates. Each draws Philox words and looks up Gaussians as `bitstream.prng` specifies.

They run on the caller's thread and release the interpreter's lock, so that `rcc.threads` can run parts of the work side
by side; numba's own threads are not used: they are either OpenMP's, of which torch brings another copy
into the process, or numba's work queue, which ends the process when two threads call it at once.

A score is a float32 sum in one order on every machine: pairs of dimensions ascending, low * t + high * t' each, every
product and sum rounded, nothing fused (no `fastmath`). So this code, `triton_kernels` and plain numpy give the same
bits, and the same candidate is best everywhere. The inner loops run over candidates, which a compiler can turn into
vector code without touching that order.
"""

import numba
import numpy as np

from codling.bitstream.compiled import compiled
from codling.bitstream.prng import PER_BLOCK, ROUNDS

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_WORD, _LOW_WORD = np.uint64(32), np.uint64(0xFFFFFFFF)
# Bits that pick a Gaussian, four times in a pair of words.
_LOW, _FIRST, _SECOND, _THIRD = np.uint64(0xFFFF), np.uint64(16), np.uint64(32), np.uint64(48)
# Candidates scored side by side: their words, values and sums stay in the cache.
TILE = 256


@numba.njit(inline="always")
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Four random words of a counter, all below 2^32 and uint64; `bitstream.prng.philox` is the reference.

    A product of two words needs 64 bits, and vector code is twice as fast if the words have that width throughout.
    """
    for _ in range(ROUNDS):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            ((p1 >> _WORD) ^ c1 ^ k0) & _LOW_WORD,
            p1 & _LOW_WORD,
            ((p0 >> _WORD) ^ c3 ^ k1) & _LOW_WORD,
            p0 & _LOW_WORD,
        )
        k0, k1 = (k0 + _W0) & _LOW_WORD, (k1 + _W1) & _LOW_WORD
    return c0, c1, c2, c3


@numba.njit(inline="always")
def _four(pair, table):  # type: ignore[no-untyped-def]
    """The Gaussians of a pair of words."""
    return (
        table[pair & _LOW], table[(pair >> _FIRST) & _LOW], table[(pair >> _SECOND) & _LOW], table[pair >> _THIRD]
    )  # fmt: skip


@compiled
def values_per_candidate(size):  # type: ignore[no-untyped-def]
    """How many of a block's eight values a candidate takes: the least power of two that is enough, or all."""
    width = 1
    while width < min(size, PER_BLOCK):
        width *= 2
    return width


@compiled
def _draw(count, width, block, first, chunk, step, k0, k1, table, pairs, z):  # type: ignore[no-untyped-def]
    """z[:width, c] = values of candidate c, for the candidates of `count` blocks with candidate words from `first` on.

    pairs: (2, TILE) uint64, scratch. z: (8, TILE) float32.
    """
    for n in range(count):
        w0, w1, w2, w3 = philox(block, np.uint64(first + n), chunk, step, k0, k1)
        pairs[0, n], pairs[1, n] = w0 | w1 << _WORD, w2 | w3 << _WORD
    share = PER_BLOCK // width
    for n in range(count):
        for pair in range(2):
            values = _four(pairs[pair, n], table)
            for i in range(4):
                place = 4 * pair + i
                z[place & (width - 1), share * n + place // width] = values[i]


@compiled
def score_candidates(target, gain, penalty, group, step, k0, k1, table, score):  # type: ignore[no-untyped-def]
    """score[r] = gain z_r . target - penalty |z_r|^2 for every candidate r of a group.

    target: (n,) float32. group, step, k0, k1: uint64. score: (candidates,), out.
    """
    pairs, z = np.empty((2, TILE), np.uint64), np.empty((PER_BLOCK, TILE), np.float32)
    dot, square = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    width = values_per_candidate(len(target))
    share = PER_BLOCK // width
    for begin in range(0, len(score), TILE):
        own = score[begin : begin + TILE]
        dot[:], square[:] = 0, 0
        for first in range(0, len(target), PER_BLOCK):
            block = np.uint64(first // PER_BLOCK)
            _draw(-(-len(own) // share), width, block, begin // share, group, step, k0, k1, table, pairs, z)
            size = min(PER_BLOCK, len(target) - first)
            for k in range(0, size - 1, 2):
                low, high, t, u = z[k], z[k + 1], target[first + k], target[first + k + 1]
                for n in range(len(own)):
                    dot[n] += low[n] * t + high[n] * u
                    square[n] += low[n] * low[n] + high[n] * high[n]
            if size % 2:
                last, t = z[size - 1], target[first + size - 1]
                for n in range(len(own)):
                    dot[n] += last[n] * t
                    square[n] += last[n] * last[n]
        for n in range(len(own)):
            own[n] = gain * dot[n] - penalty * square[n]


@compiled
def score_groups(target, starts, gain, penalty, counts, first, step, k0, k1, table, scores):  # type: ignore[no-untyped-def]
    """scores[n, :counts[first + n]] = those of group first + n.

    target: float32, group i at [starts[i], starts[i + 1]). gain, penalty: (groups,) float32. counts: (groups,)
    candidates of each.
    """
    for n in range(len(scores)):
        i = first + n
        own, score = target[starts[i] : starts[i + 1]], scores[n, : counts[i]]
        score_candidates(own, gain[i], penalty[i], np.uint64(i), step, k0, k1, table, score)


@numba.njit(inline="always")
def _repeat(values, times, out):  # type: ignore[no-untyped-def]
    """out[times i + k] = values[i]; vector code where `times` is written as a number."""
    for i in range(len(values)):
        for k in range(times):
            out[times * i + k] = values[i]


@numba.njit(inline="always")
def _greatest(values, scratch):  # type: ignore[no-untyped-def]
    """Of 2, 4, 8... values, none NaN: halves against each other, which vector code can do. scratch: as long."""
    width = len(values) // 2
    for i in range(width):
        scratch[i] = max(values[i], values[width + i])
    while width > 1:
        width //= 2
        for i in range(width):
            scratch[i] = max(scratch[i], scratch[width + i])
    return scratch[0]


@compiled
def extend_paths(value, scores, memory, bits, back):  # type: ignore[no-untyped-def]
    """Viterbi steps over groups. A register of memory + bits bits holds the state before in its high bits and after.

    value: (2^memory,) best score of a path into each state, in and out. scores: (n, candidates). bits: (n,) of each
    group. back: (n, 2^memory) uint8, the high bits dropped by the best way into each state, out; of equal ways the
    lowest.
    """
    states = len(value)
    best, before = np.empty_like(value), np.empty_like(value)
    for n in range(len(scores)):
        ways, dropped = 1 << bits[n], back[n]
        sources = states >> bits[n]
        for high in range(ways):
            # States that share all but their last bits come from the same one.
            source = value[high * sources : (high + 1) * sources]
            score = scores[n, high << memory : (high + 1) << memory]
            if ways == 2:
                _repeat(source, 2, before)
            elif ways == 4:
                _repeat(source, 4, before)
            else:
                _repeat(source, ways, before)
            if high == 0:
                for state in range(states):
                    best[state], dropped[state] = before[state] + score[state], 0
            else:
                for state in range(states):
                    reached = before[state] + score[state]
                    better = reached > best[state]
                    best[state] = reached if better else best[state]
                    dropped[state] = high if better else dropped[state]
        # Scores grow with every group; float32 keeps its resolution only if the best stays at zero.
        top = _greatest(best, before)
        for state in range(states):
            value[state] = best[state] - top


@compiled
def trace_back(value, memory, bits, back, message):  # type: ignore[no-untyped-def]
    """`message` (groups,) uint8 gets the bits of the path that ends in the best state."""
    state = np.int64(np.argmax(value))
    for i in range(len(message) - 1, -1, -1):
        message[i] = state & ((1 << bits[i]) - 1)
        state = ((np.int64(back[i, state]) << memory) | state) >> bits[i]


@compiled
def draw_codewords(message, starts, memory, bits, step, k0, k1, table, out):  # type: ignore[no-untyped-def]
    """out[starts[i]:starts[i + 1]] = the candidate of group i that the register names after the group's bits."""
    register = np.int64(0)
    for i in range(len(message)):
        register = ((register << bits[i]) | message[i]) & ((np.int64(1) << (memory + bits[i])) - 1)
        width = values_per_candidate(starts[i + 1] - starts[i])
        share = PER_BLOCK // width
        word, skip = np.uint64(register // share), register % share * width
        for place in range(starts[i], starts[i + 1], PER_BLOCK):
            block = np.uint64((place - starts[i]) // PER_BLOCK)
            w0, w1, w2, w3 = philox(block, word, np.uint64(i), step, k0, k1)
            values = _four(w0 | w1 << _WORD, table) + _four(w2 | w3 << _WORD, table)
            for j in range(min(PER_BLOCK, starts[i + 1] - place)):
                out[place + j] = values[skip + j]


@compiled
def score_block(target, first, chunk, step, k0, k1, table, score):  # type: ignore[no-untyped-def]
    """score[n] = z . target of candidate first + n of a chunk; target: (8 m,) float32, padded with zeros."""
    pairs, z = np.empty((2, TILE), np.uint64), np.empty((PER_BLOCK, TILE), np.float32)
    for begin in range(0, len(score), TILE):
        dot = score[begin : begin + TILE]
        dot[:] = 0
        for place in range(0, len(target), PER_BLOCK):
            block = np.uint64(place // PER_BLOCK)
            _draw(len(dot), PER_BLOCK, block, first + begin, chunk, step, k0, k1, table, pairs, z)
            for k in range(0, PER_BLOCK, 2):
                low, high, t, u = z[k], z[k + 1], target[place + k], target[place + k + 1]
                for n in range(len(dot)):
                    dot[n] += low[n] * t + high[n] * u
