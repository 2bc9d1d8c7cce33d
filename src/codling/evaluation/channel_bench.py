"""How well and how fast reverse channel coding spends bits, measured on targets of evenly spread energy."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from codling.rcc.pfr import scores
from codling.rcc.trellis import codewords, search

# Dimensions of a group: more change nothing but the time.
GROUP = 8


@dataclass(frozen=True)
class ChannelRow:
    """A coder: bits it sends, the share of them that is effective, candidates a dimension, seconds a kilobit."""

    coder: str
    effective: float
    candidates: int
    seconds: float


def effective_bits(projection: float) -> float:
    """Bits that a projection on the unit target is worth: an ideal code of B bits reaches sqrt(2 B ln 2)."""
    return projection**2 / (2 * np.log(2))


def coders(
    threads: int, *, blocks: tuple[int, ...] = (8, 12, 16), memories: tuple[int, ...] = (6, 8, 10, 12)
) -> Iterator[ChannelRow]:
    """Blocks of so many bits, and trellises of 2^memory states at one bit a group."""
    rng = np.random.default_rng(0)
    for bits in blocks:
        targets = _unit_rows(rng, 200 if bits < 16 else 40, GROUP * bits)
        begin, best = time.perf_counter(), []
        for chunk, target in enumerate(targets):
            score = scores(target, 1 << bits, seed=0, step=0, chunk=chunk, threads=threads)
            best.append(float(score.max()))
        seconds = (time.perf_counter() - begin) / (len(targets) * bits / 1000)
        yield ChannelRow(f"blocks of {bits} bits", effective_bits(float(np.mean(best))) / bits, 1 << bits, seconds)
    for memory in memories:
        groups = 2000
        target = _unit_rows(rng, groups, GROUP).ravel()
        starts, bits_sent = np.arange(groups + 1) * GROUP, np.ones(groups, np.int64)
        begin = time.perf_counter()
        message = search(target, starts, np.ones(groups), bits_sent, memory=memory, step=0, threads=threads)
        seconds = (time.perf_counter() - begin) / (groups / 1000)
        z = codewords(message, starts, bits_sent, memory=memory, step=0)
        projection = float(z @ target / np.linalg.norm(target))
        share = effective_bits(projection) / groups
        yield ChannelRow(f"trellis of {1 << memory:,} states", share, 2 << memory, seconds)


def candidates_per_second(threads: int, *, dimensions: int = 4096, candidates: int = 1 << 16) -> float:
    """Gaussians drawn and multiplied with a target, a second."""
    target = np.random.default_rng(0).normal(size=dimensions).astype(np.float32)
    times = []
    for repeat in range(4):
        begin = time.perf_counter()
        scores(target, candidates, seed=0, step=0, chunk=repeat, threads=threads)
        times.append(time.perf_counter() - begin)
    return dimensions * candidates / min(times[1:])


def library_candidates_per_second(dimensions: int = 4096, candidates: int = 1 << 12) -> float:
    """The same with a library's generator and one matrix product."""
    target, rng = np.random.default_rng(0).normal(size=dimensions).astype(np.float32), np.random.default_rng(1)
    begin = time.perf_counter()
    (rng.standard_normal((candidates, dimensions), np.float32) @ target).argmax()
    return dimensions * candidates / (time.perf_counter() - begin)


def _unit_rows(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    rows = rng.normal(size=(count, size))
    out: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return out
