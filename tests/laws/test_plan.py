"""Plans of reverse channel coding: integers that agree with the real numbers they stand for, on any size."""

import numpy as np
import pytest
from scipy.fft import dctn

from codling.rcc.plan import (
    ErrorTable,
    coefficient_rate,
    frequency_bands,
    log_gain,
    plan_step,
    shuffle,
)
from codling.rcc.spectral import COLOUR, dct, from_spectrum, idct, to_spectrum

EDGES = np.array([0, 2, 4, 8, 16, 32, 64, 128, 256, 512])


def falling_table() -> ErrorTable:
    """Errors that fall with frequency, and with noise."""
    levels = np.array([100, 500, 900])
    bands = np.arange(len(EDGES))
    log_error = 256 * (levels[:, None, None] // 200 - bands - np.arange(3)[:, None])
    return ErrorTable(levels, EDGES, log_error)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 15, 64, 501])
def test_dct_is_orthonormal_and_the_library_one(n: int) -> None:
    x = np.random.default_rng(n).normal(size=(2, n))
    assert np.allclose(dct(x), dctn(x, axes=(1,), norm="ortho"))
    assert np.allclose(idct(dct(x)), x)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 30), (96, 64)])
def test_spectrum_is_an_inverse_pair_that_keeps_energy(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
    spectrum = to_spectrum(image)
    assert np.allclose(from_spectrum(spectrum), image, atol=1e-5)
    assert np.square(spectrum).sum() == pytest.approx(np.square(image).sum(), rel=1e-5)
    assert np.allclose(COLOUR @ COLOUR.T, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (512, 768), (333, 77), (5000, 3000)])
def test_bands_are_those_of_the_radius(size: tuple[int, int]) -> None:
    height, width = size
    bands = frequency_bands(EDGES, height, width)
    radius = 512 * np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width)
    near = np.abs(radius[..., None] - EDGES).min(-1) < 1e-6  # where the real number is on an edge, rounding decides
    expected = np.searchsorted(EDGES, radius, side="right") - 1
    assert np.array_equal(bands[~near], expected[~near])
    assert bands[0, 0] == 0


@pytest.mark.parametrize(("level", "following"), [(1023, 950), (950, 900), (900, 300), (300, 299), (2, 1)])
def test_log_gain_is_the_algebra_of_the_posterior(level: int, following: int) -> None:
    def signal(s: int) -> float:
        ratio = ((1024 - s) / s) ** 2
        return ratio / (1 + ratio)

    a, a2 = signal(level), signal(following)
    b, b2, beta = 1 - a, 1 - a2, 1 - a / a2
    variance, gain = b2 / b * beta, np.sqrt(a2) * beta / b
    assert log_gain(level, following) == pytest.approx(256 * np.log2(gain**2 / variance), abs=1.01)


@pytest.mark.parametrize(("level", "following"), [(500, 500), (400, 500), (1024, 5), (5, 0)])
def test_steps_go_down(level: int, following: int) -> None:
    with pytest.raises(ValueError, match="to a smaller one"):
        log_gain(level, following)


@pytest.mark.parametrize("log_ratio", [-3000, -256, 0, 77, 256, 2000])
def test_rates_are_those_of_the_formula(log_ratio: int) -> None:
    exact = np.log2(1 + 2 ** (log_ratio / 256)) / 2 * 65536
    assert exact - 1.001 < coefficient_rate(log_ratio) <= exact + 0.001


@pytest.mark.parametrize("size", [(1, 1), (24, 31), (64, 96)])
@pytest.mark.parametrize("bits", [1, 2])
def test_a_plan_spends_the_rate_of_its_coefficients(size: tuple[int, int], bits: int) -> None:
    table, classes = falling_table(), frequency_bands(EDGES, *size)
    plan = plan_step(table, classes, level=800, following=700, threshold=-700, scale=1, bits=bits)
    members = np.concatenate([band.members for band in plan]) if plan else np.zeros(0, int)
    assert len(np.unique(members)) == len(members)
    ratios = (table.at(800) + log_gain(800, 700))[:, classes].ravel()
    assert (ratios[members] >= -700).all()
    assert all(0 < band.groups <= len(band.members) for band in plan)
    assert all(np.diff(band.starts()).min() > 0 for band in plan)
    rate = sum(coefficient_rate(band.log_ratio) * len(band.members) for band in plan) / 65536
    limited = any(band.groups == len(band.members) for band in plan)
    sent = bits * sum(band.groups for band in plan)
    assert sent <= rate + bits * len(plan)
    assert limited or sent > rate - bits


# Members, log ratio, groups and sum of the members' places of each band.
PINNED = [(1, 498, 1, 0), (2, -14, 1, 7681), (4, -270, 2, 4004), (13, -526, 2, 20266), (51, -782, 4, 67333)]


def test_plans_do_not_depend_on_anything_but_integers() -> None:
    """Pinned: another value here is another format."""
    plan = plan_step(
        falling_table(), frequency_bands(EDGES, 48, 80), level=900, following=640, threshold=-800, scale=-1, bits=1
    )
    assert [(len(b.members), b.log_ratio, b.groups, int(b.members.sum())) for b in plan] == PINNED


def test_thresholds_above_everything_code_nothing() -> None:
    classes = frequency_bands(EDGES, 20, 20)
    assert plan_step(falling_table(), classes, level=800, following=700, threshold=99_999, scale=0, bits=1) == []


def test_tables_interpolate_and_hold_their_ends() -> None:
    table = falling_table()
    assert np.array_equal(table.at(500), table.log_error[1])
    assert np.array_equal(table.at(1000), table.log_error[2])
    assert np.array_equal(table.at(3), table.log_error[0])
    assert np.array_equal(table.at(700), (table.log_error[1] + table.log_error[2]) // 2)
    with pytest.raises(ValueError, match="error table wants integers"):
        ErrorTable(table.levels, table.edges, table.log_error.astype(float))


def test_shuffles_are_permutations_with_even_signs() -> None:
    order, signs = shuffle(5000, seed=1, step=2, band=3)
    assert sorted(order) == list(range(5000))
    assert set(signs) == {-1.0, 1.0}
    assert abs(signs.sum()) < 300
    assert np.corrcoef(order, np.arange(5000))[0, 1] == pytest.approx(0, abs=0.05)
    assert not np.array_equal(order, shuffle(5000, seed=1, step=2, band=4)[0])
