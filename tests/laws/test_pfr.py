"""Poisson functional representation: the published channel coder."""

import numpy as np
import pytest
from scipy.stats import kstest

from codling.bitstream.entropy import Decoder, Encoder
from codling.bitstream.prng import gaussians
from codling.rcc.pfr import chunk_bits, decode, encode, log_arrivals, zipf


def plain_encode(target: np.ndarray, bits: int, seed: int) -> int:
    """Candidate by candidate, as the definition has it."""
    times = np.exp(log_arrivals(bits, seed=seed, step=2, chunk=3))
    best, index = np.inf, -1
    for i in range(1 << bits):
        z = gaussians(len(target), seed=seed, stream=2, chunk=3, candidate=i).astype(float)
        weight = np.exp(z @ target - target @ target / 2)
        if times[i] / weight < best:
            best, index = times[i] / weight, i
    return index


@pytest.mark.parametrize("count", [1, 8, 21])
def test_the_compiled_search_finds_the_reference_index(count: int) -> None:
    for seed in range(5):
        target = np.random.default_rng(seed).normal(size=count).astype(np.float32) / 2
        index = encode(target, 8, seed=seed, step=2, chunk=3)
        assert index == plain_encode(target, 8, seed)
        expected = gaussians(count, seed=seed, stream=2, chunk=3, candidate=index)
        assert np.array_equal(decode(index, count, seed=seed, step=2, chunk=3), expected)


def test_arrivals_are_a_poisson_process() -> None:
    times = np.exp(log_arrivals(12, seed=0, step=0, chunk=0))
    assert kstest(np.diff(times), "expon").pvalue > 0.01


def test_samples_have_the_target_distribution() -> None:
    """Of three bits of information with nine bits of candidates, none is missed."""
    length = np.sqrt(2 * np.log(2) * 3)
    target = np.array([length, 0.0], np.float32)
    draws = [
        decode(encode(target, 9, seed=seed, step=0, chunk=0), 2, seed=seed, step=0, chunk=0) for seed in range(800)
    ]
    samples = np.array(draws) - target
    assert kstest(samples[:, 0], "norm").pvalue > 0.01
    assert kstest(samples[:, 1], "norm").pvalue > 0.01


@pytest.mark.parametrize("information", [0.0, 2.0, 6.0])
def test_code_lengths_keep_the_bound(information: float) -> None:
    """Li and El Gamal: at most I + log2(I + 1) + 5 bits, and here a good deal less."""
    target = np.array([np.sqrt(2 * np.log(2) * information)], np.float32)
    tables = zipf(round(information) + 2)
    indices = [encode(target, round(information) + 2, seed=seed, step=0, chunk=0) for seed in range(300)]
    length = np.mean([tables.bits(0, index) for index in indices])
    assert length < information + np.log2(information + 1) + 5
    coder = Encoder()
    for index in indices[:40]:
        coder.put(index, tables.model(0))
    decoder = Decoder(coder.finish())
    assert [decoder.get(tables.model(0)) for _ in range(40)] == indices[:40]


def test_chunks_share_the_bits_evenly() -> None:
    for divergence in (0.3, 13.9, 14.1, 100.0, 777.5):
        bits = chunk_bits(divergence)
        assert sum(bits) == int(np.ceil(divergence)) + 2 * len(bits)
        assert max(bits) - min(bits) <= 1
        assert max(bits) <= 16
