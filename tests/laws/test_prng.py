"""The shared generator: known answers of Random123, the Gaussian table, and the layout of draws."""

import hashlib
from statistics import NormalDist

import numpy as np
import pytest

from codling.bitstream.prng import gaussians, normal_table, philox

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: tuple, key: tuple, words: tuple) -> None:
    assert tuple(philox(np.array(counter, np.uint32), key)) == words


def test_table_is_the_inverse_normal_distribution_at_midpoints() -> None:
    table = normal_table()
    expected = [NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(0, 65536, 37)]
    np.testing.assert_allclose(table[::37], expected, rtol=2e-7)
    assert np.array_equal(table, -table[::-1])
    digest = hashlib.sha256(table[32768:].astype("<f4").tobytes()).hexdigest()
    assert digest == "6621a18f629e82396c088501c1095eae46f6d8033b42db7b4158e0f4cf34a0ce"


def test_draws_follow_the_documented_layout() -> None:
    seed, stream, chunk, candidate = 2**40 + 7, 3, 2, 1
    draws = gaussians(19, seed=seed, stream=stream, chunk=chunk, candidate=candidate)
    for i, value in enumerate(draws):
        counter = np.array([i // 8, candidate, chunk, stream], np.uint32)
        word = int(philox(counter, (seed & 0xFFFFFFFF, seed >> 32))[i % 8 // 2])
        assert value == normal_table()[word & 0xFFFF if i % 2 == 0 else word >> 16]


def test_a_longer_draw_continues_a_shorter_one() -> None:
    assert np.array_equal(gaussians(1000, seed=5)[:77], gaussians(77, seed=5))


def test_draws_are_standard_normal() -> None:
    draws = np.sort(gaussians(200_000, seed=1))
    distribution = np.array([NormalDist().cdf(x) for x in draws[::100]])
    distance = np.abs(distribution - (np.arange(0, 200_000, 100) + 0.5) / 200_000).max()
    assert distance < 1.63 / np.sqrt(200_000)  # Kolmogorov-Smirnov, 1% level


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        gaussians(1, seed=seed)
