"""Reverse channel coding: the compiled search against a plain one, decoding without a search, and bits well spent."""

import numpy as np
import pytest

from codling.bitstream.prng import gaussians, normal_table
from codling.bitstream.prng import philox as reference_philox
from codling.rcc.kernels import philox, score_group
from codling.rcc.trellis import Trellis, codewords, search


def split(count: int, groups: int) -> np.ndarray:
    return np.linspace(0, count, groups + 1).astype(np.int64)


def plain_search(
    target: np.ndarray, starts: np.ndarray, share: np.ndarray, trellis: Trellis, *, seed: int, step: int
) -> float:
    """The best path's score by trying every message."""
    groups, best = len(starts) - 1, -np.inf
    for number in range(1 << (groups * trellis.bits)):
        message = np.array([(number >> (trellis.bits * g)) & ((1 << trellis.bits) - 1) for g in range(groups)])
        best = max(best, path_score(message, target, starts, share, trellis, seed=seed, step=step))
    return best


def path_score(
    message: np.ndarray, target: np.ndarray, starts: np.ndarray, share: np.ndarray, trellis: Trellis, *, seed: int,
    step: int,
) -> float:  # fmt: skip
    z = codewords(message, starts, trellis, seed=seed, step=step).astype(np.float64)
    rho2 = np.repeat(share, np.diff(starts))
    return float((z * target / rho2 - z**2 * (1 / rho2 - 1) / 2).sum())


def test_the_compiled_generator_is_the_reference() -> None:
    for counter in ((0, 0, 0, 0), (1, 2, 3, 4), (0xFFFFFFFF, 7, 0, 0xFFFFFFFF)):
        words = philox(*(np.uint32(c) for c in counter), np.uint32(0xA4093822), np.uint32(0x299F31D0))
        assert tuple(words) == tuple(reference_philox(np.array(counter), (0xA4093822, 0x299F31D0)))


def test_compiled_scores_are_those_of_the_reference_draws() -> None:
    rng = np.random.default_rng(0)
    target, valid = np.zeros(16, np.float32), np.zeros(16, np.float32)
    target[:13], valid[:13] = rng.normal(size=13), 1
    score = np.empty(64, np.float32)
    score_group(target, valid, np.float32(1.5), np.float32(0.2), np.uint32(9), np.uint32(4), np.uint32(5), np.uint32(0),
                normal_table(), score)  # fmt: skip
    for candidate in range(64):
        z = gaussians(13, seed=5, stream=4, chunk=9, candidate=candidate)
        assert score[candidate] == pytest.approx(1.5 * z @ target[:13] - 0.2 * z @ z, abs=1e-4)


@pytest.mark.parametrize("trellis", [Trellis(1, 1), Trellis(3, 1), Trellis(4, 2), Trellis(3, 3)])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_viterbi_finds_the_best_of_all_messages(trellis: Trellis, share: float) -> None:
    groups = 9 // trellis.bits
    starts, shares = split(37, groups), np.full(groups, share)
    target = np.random.default_rng(trellis.memory).normal(size=37).astype(np.float32)
    message = search(target, starts, shares, trellis, seed=3, step=1)
    found = path_score(message, target, starts, shares, trellis, seed=3, step=1)
    assert found == pytest.approx(plain_search(target, starts, shares, trellis, seed=3, step=1), abs=1e-3)
    assert message.max() < 1 << trellis.bits


def test_decoding_depends_on_message_seed_and_step_alone() -> None:
    starts, message = split(100, 10), np.arange(10) % 2
    first = codewords(message, starts, Trellis(4, 1), seed=1, step=2)
    assert np.array_equal(first, codewords(message, starts, Trellis(4, 1), seed=1, step=2))
    for seed, step in ((2, 2), (1, 3)):
        assert not np.array_equal(first, codewords(message, starts, Trellis(4, 1), seed=seed, step=step))
    flipped = message.copy()
    flipped[3] ^= 1  # reaches this group and the four that remember it
    changed = codewords(flipped, starts, Trellis(4, 1), seed=1, step=2).reshape(10, 10) != first.reshape(10, 10)
    assert list(changed.any(1)) == [3 <= group <= 7 for group in range(10)]


@pytest.mark.parametrize(("memory", "least"), [(4, 0.66), (8, 0.84), (10, 0.88)])
def test_bits_are_well_spent(memory: int, least: float) -> None:
    """Effective bits p^2 / (2 ln 2) over bits sent, p the projection on the unit target; a block of 8 bits has 0.71."""
    groups, size = 1000, 8
    target = np.random.default_rng(0).normal(size=(groups, size))
    # Mixing gives every group the same energy.
    target = (target / np.linalg.norm(target, axis=1, keepdims=True)).astype(np.float32).ravel()
    starts, trellis = split(target.size, groups), Trellis(memory, 1)
    message = search(target, starts, np.ones(groups), trellis, seed=0, step=0)
    z = codewords(message, starts, trellis, seed=0, step=0)
    projection = float(z @ target / np.linalg.norm(target))
    assert least < projection**2 / (2 * np.log(2)) / groups < 1


def test_codewords_have_the_variance_the_prior_promises() -> None:
    """With the predictive prior, codewords of a target drawn from the model have mean 0 and variance 1."""
    rng = np.random.default_rng(1)
    share, count, groups = 0.5, 6000, 3000  # one bit for two dimensions: the rate of rho^2 = 1/2
    # z = target + noise of variance rho^2 has variance 1: the target has 1 - rho^2.
    target = (np.sqrt(1 - share) * rng.normal(size=count)).astype(np.float32)
    starts, trellis = split(count, groups), Trellis(8, 1)
    z = codewords(
        search(target, starts, np.full(groups, share), trellis, seed=0, step=0), starts, trellis, seed=0, step=0
    )
    assert z.mean() == pytest.approx(0, abs=0.05)
    assert z.var() == pytest.approx(1, abs=0.1)
    # The channel's noise is what it should be, up to the bits a finite trellis does not deliver.
    assert np.square(z - target).mean() == pytest.approx(share, rel=0.15)


@pytest.mark.parametrize(("memory", "bits"), [(0, 1), (2, 3), (20, 1), (9, 9)])
def test_impossible_trellises(memory: int, bits: int) -> None:
    with pytest.raises(ValueError, match="a trellis needs"):
        Trellis(memory, bits)
