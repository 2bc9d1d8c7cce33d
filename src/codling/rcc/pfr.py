"""Poisson functional representation (Li and El Gamal 2018): the published way to send a sample of a Gaussian.

Both sides can draw candidates z_i ~ N(0, I). The encoder, which wants a sample of N(mu, I), gives each an arrival time
T_i of a Poisson process and picks the candidate with the least T_i / w_i, w_i the density ratio of the two
distributions. With endless candidates that is an exact sample; its number, counted from 1, follows nearly a Zipf law,
by which it is coded. The published DiffC cuts a step into chunks of up to 16 bits, two of them padding.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from codling.bitstream.entropy import TableSet, fit_weights
from codling.bitstream.prng import PER_BLOCK, gaussians, normal_table, philox, split_seed
from codling.rcc.threads import in_parts

# Chunks of the published scheme: most bits, and how many of them are there against running out of candidates.
CHUNK_BITS, PADDING_BITS = 16, 2
# Which Philox streams time the arrivals: the counter's third word.
ARRIVALS = 0xFFFFFFFB


def chunk_bits(divergence: float) -> list[int]:
    """Bits of each chunk of a step whose Kullback-Leibler divergence is so many bits, padding included."""
    total = math.ceil(divergence)
    count = -(-total // (CHUNK_BITS - PADDING_BITS))
    return [total * (i + 1) // count - total * i // count + PADDING_BITS for i in range(count)]


def encode(target: np.ndarray, bits: int, *, seed: int, step: int, chunk: int, threads: int = 1) -> int:
    """Which of 2^bits candidates stands for a sample of N(target, I); target: (n,) float32. threads: of the search."""
    score = scores(target, 1 << bits, seed=seed, step=step, chunk=chunk, threads=threads)
    return int(np.argmax(score - log_arrivals(bits, seed=seed, step=step, chunk=chunk)))


def scores(target: np.ndarray, count: int, *, seed: int, step: int, chunk: int, threads: int) -> np.ndarray:
    """The scalar products of the first `count` candidates with a target (n,) float32: (count,) float32."""
    from codling.rcc.kernels import score_block

    padded = np.zeros(-(-len(target) // PER_BLOCK) * PER_BLOCK, np.float32)
    padded[: len(target)] = target
    out = np.empty(count, np.float32)
    k0, k1 = (np.uint64(half) for half in split_seed(seed))

    def score(begin: int, end: int) -> None:
        score_block(padded, begin, np.uint64(chunk), np.uint64(step), k0, k1, normal_table(), out[begin:end])

    with ThreadPoolExecutor(threads) as pool:
        in_parts(pool, threads, 0, count, score)
    return out


def decode(index: int, count: int, *, seed: int, step: int, chunk: int) -> np.ndarray:
    """The sample that an index stands for, (count,) float32."""
    return gaussians(count, seed=seed, stream=step, chunk=chunk, candidate=index)


def log_arrivals(bits: int, *, seed: int, step: int, chunk: int) -> np.ndarray:
    """Logarithms of the first 2^bits arrival times of a Poisson process of rate 1."""
    counter = np.zeros((max((1 << bits) // 4, 1), 4), np.uint32)
    counter[:, 0], counter[:, 1:] = np.arange(len(counter)), (chunk, ARRIVALS, step)
    words = philox(counter, split_seed(seed)).ravel()[: 1 << bits]
    out: np.ndarray = np.log(np.cumsum(-np.log((words + 0.5) / 2**32)))
    return out


@cache
def zipf(bits: int) -> TableSet:
    """The law of the index of a chunk of so many bits, padding included: p(i) ~ (i + 1)^-exponent.

    The exponent is Li and El Gamal's 1 + 1 / (I + log2(e) / e + 1) for I bits of information.
    """
    information = max(bits - PADDING_BITS, 0)
    exponent = 1 + 1 / (information + math.log2(math.e) / math.e + 1)
    return TableSet(np.maximum(fit_weights((np.arange(1 << bits) + 1.0)[None] ** -exponent), 1))
