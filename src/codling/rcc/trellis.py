"""Trellis coding of a Gaussian target: the candidates of a group of dimensions depend on the last bits sent.

A block code of b bits searches 2^b candidates and wastes what a finite pool cannot deliver. Here a shift register of
`memory + bits` bits names the candidate of each group; each group sends `bits` new bits, its own number, and the best
whole path is found by Viterbi's algorithm, so every bit is chosen for its effect on many groups. The message has
exactly the bits of its groups and needs no entropy coder. The register starts at zero.

The encoder looks for codewords z, drawn from N(0, I), that maximise the log density ratio of the true conditional and
the distribution they are drawn from. With the predictive prior (see `codling.rcc`) codewords stand for values of
variance v, of which the share rho^2 is the channel's own noise, and that is, up to a constant,

    sum over groups of  z . target / rho^2 - |z|^2 (1 / rho^2 - 1) / 2

with the target in units of sqrt(v). Where rho^2 = 1 this is the plain projection.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from codling.bitstream.prng import normal_table, split_seed
from codling.rcc.threads import in_parts

# States of the search are 2^memory; a register holds at most 8 bits more.
MAX_MEMORY = 16
# Groups scored between two turns of the path search: enough that threads seldom wait for each other, but no more than
# 1 MB of scores, which stay in the cache, unless threads would have nothing to do. 256 MB bounds it all.
BATCH, CACHED_SCORES, BATCH_SCORES = 64, 1 << 18, 1 << 26


class Search(Protocol):
    """What finds messages: `search` with its threads settled, or the same on another device."""

    def __call__(
        self, target: np.ndarray, starts: np.ndarray, noise_share: np.ndarray, bits: np.ndarray, *, memory: int,
        step: int,
    ) -> np.ndarray: ...  # fmt: skip


def search(
    target: np.ndarray, starts: np.ndarray, noise_share: np.ndarray, bits: np.ndarray, *, memory: int, step: int,
    seed: int = 0, threads: int = 1,
) -> np.ndarray:  # fmt: skip
    """The best message for a target: (groups,) uint8, each below 2^bits of its group.

    target: (n,) float32, in units of the codewords' deviation. starts: (groups + 1,), group i is
    `target[starts[i]:starts[i + 1]]`. noise_share: (groups,), rho^2 in (0, 1]. bits: (groups,) 1 to 8.
    threads: that score candidates; their number changes nothing but the time.

    Raises ValueError if a group sends more bits than the memory has.
    """
    from codling.rcc.kernels import extend_paths, score_groups, trace_back

    if bits.max() > memory:
        raise ValueError(f"a group sends {bits.max()} bits: take a memory of as many at least, not {memory}")
    aim, bounds = np.ascontiguousarray(target, np.float32), starts.astype(np.int64)
    gain, penalty = weights(noise_share)
    groups, sends = len(starts) - 1, bits.astype(np.int64)
    counts = np.int64(1) << memory + sends
    value = np.full(1 << memory, -np.inf, np.float32)
    value[0] = 0
    most = int(counts.max())
    batch = min(groups, BATCH, max(2 * threads, CACHED_SCORES // most), max(1, BATCH_SCORES // most))
    scores = np.empty((batch, most), np.float32)
    back = np.empty((groups, 1 << memory), np.uint8)
    draws = (np.uint64(step), *_key(seed), normal_table())

    def score(begin: int, end: int) -> None:
        part = scores[begin - first : end - first]
        score_groups(aim, bounds, gain, penalty, counts, begin, *draws, part)

    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, groups, batch):
            last = min(first + batch, groups)
            in_parts(pool, threads, first, last, score)
            extend_paths(value, scores[: last - first], memory, sends[first:last], back[first:last])
    message = np.zeros(groups, np.uint8)
    trace_back(value, memory, sends, back, message)
    return message


def weights(noise_share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of z . target and of |z|^2 in a group's score, (groups,) float32 both, from rho^2."""
    return (1 / noise_share).astype(np.float32), ((1 / noise_share - 1) / 2).astype(np.float32)


def codewords(
    message: np.ndarray, starts: np.ndarray, bits: np.ndarray, *, memory: int, step: int, seed: int = 0
) -> np.ndarray:
    """What a message says: (n,) float32, standard normal over the choice of the seed. No search.

    A message shorter than the groups gives the codewords of the groups it has.
    """
    from codling.rcc.kernels import draw_codewords

    out = np.empty(int(starts[len(message)]), np.float32)
    draw_codewords(message, starts, memory, bits.astype(np.int64), np.uint64(step), *_key(seed), normal_table(), out)
    return out


def _key(seed: int) -> tuple[np.uint64, np.uint64]:
    low, high = split_seed(seed)
    return np.uint64(low), np.uint64(high)
