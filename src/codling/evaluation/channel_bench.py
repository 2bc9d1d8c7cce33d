"""How well and how fast reverse channel coding spends bits, measured on targets of evenly spread energy."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from codling.rcc.pfr import scores
from codling.rcc.trellis import Search, codewords, search

if TYPE_CHECKING:
    from codling.codecs.triton_search import TritonSearch

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
        yield _trellis_row(partial(search, threads=threads), memory)


def gpu_coders(gpu: "TritonSearch", *, memories: tuple[int, ...] = (8, 10, 12)) -> Iterator[ChannelRow]:
    """The trellises on a GPU: the same messages, after a first run that compiles."""
    for memory in memories:
        _trellis_row(gpu.message, memory)
        yield _trellis_row(gpu.message, memory)


def gpu_candidates_per_second(gpu: "TritonSearch", *, dimensions: int = 4096, bits: int = 16) -> float:
    """As `candidates_per_second`, of a whole block search on a GPU."""
    target = np.random.default_rng(0).normal(size=dimensions).astype(np.float32)
    search_block = partial(gpu.candidate, target, bits, seed=0, step=0)
    return dimensions * (1 << bits) / _fastest(lambda repeat: search_block(chunk=repeat))


def candidates_per_second(threads: int, *, dimensions: int = 4096, candidates: int = 1 << 16) -> float:
    """Gaussians drawn and multiplied with a target, a second."""
    target = np.random.default_rng(0).normal(size=dimensions).astype(np.float32)
    draw = partial(scores, target, candidates, seed=0, step=0, threads=threads)
    return dimensions * candidates / _fastest(lambda repeat: draw(chunk=repeat))


def step_seconds(threads: int, memory: int, *, groups: int = 8000) -> float:
    """Finding the message of a step as DiffC's are: groups of one or two coefficients that send one bit each."""
    starts = np.arange(groups + 1) * 3 // 2
    share = 4 ** -(groups / starts[-1])
    target = np.random.default_rng(0).normal(size=starts[-1]) * np.sqrt(1 - share)
    find = partial(search, target, starts, np.full(groups, share), np.ones(groups, np.int64), memory=memory)
    return _fastest(lambda repeat: find(step=repeat, threads=threads))


def library_candidates_per_second(dimensions: int = 4096, candidates: int = 1 << 12) -> float:
    """The same with a library's generator and one matrix product."""
    target, rng = np.random.default_rng(0).normal(size=dimensions).astype(np.float32), np.random.default_rng(1)
    begin = time.perf_counter()
    (rng.standard_normal((candidates, dimensions), np.float32) @ target).argmax()
    return dimensions * candidates / (time.perf_counter() - begin)


def _trellis_row(find: Search, memory: int) -> ChannelRow:
    groups = 2000
    target = _unit_rows(np.random.default_rng(memory), groups, GROUP).ravel()
    starts, bits_sent = np.arange(groups + 1) * GROUP, np.ones(groups, np.int64)
    begin = time.perf_counter()
    message = find(target, starts, np.ones(groups), bits_sent, memory=memory, step=0)
    seconds = (time.perf_counter() - begin) / (groups / 1000)
    z = codewords(message, starts, bits_sent, memory=memory, step=0)
    projection = float(z @ target / np.linalg.norm(target))
    return ChannelRow(f"trellis of {1 << memory:,} states", effective_bits(projection) / groups, 2 << memory, seconds)


def _fastest(action: Callable[[int], object]) -> float:
    """Least seconds of three runs, after a first one that may compile."""
    times = []
    for repeat in range(4):
        begin = time.perf_counter()
        action(repeat)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _unit_rows(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    rows = rng.normal(size=(count, size))
    out: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return out
