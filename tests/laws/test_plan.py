"""Plans of reverse channel coding: integers that agree with the real numbers they stand for, on any size."""

import numpy as np
import pytest
from scipy.fft import dctn

from codling.rcc.plan import (
    START_BITS,
    ErrorTable,
    Layout,
    coefficient_rate,
    frequency_bands,
    log_gain,
    log_gains,
    plan_step,
    scaled,
    shuffle,
)
from codling.rcc.spectral import COLOUR, dct, from_spectrum, idct, to_spectrum

EDGES = 8 * np.array([0, 2, 4, 8, 16, 32, 64, 128, 256, 512])


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


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (512, 768), (333, 77), (77, 333), (200_000, 3), (5000, 3000)])
def test_bands_are_those_of_the_radius(size: tuple[int, int]) -> None:
    height, width = size
    bands = frequency_bands(EDGES, height, width)
    radius = 4096 * np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width)
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


def ratios(level: int, following: int, scale: int = 0) -> np.ndarray:
    table = falling_table()
    levels = np.full(table.log_error.shape[1:], level)
    return scaled(table.at(levels), scale) + log_gains(levels, following)


@pytest.mark.parametrize("size", [(1, 1), (24, 31), (64, 96)])
@pytest.mark.parametrize("bits", [1, 2])
def test_a_plan_spends_the_rate_of_its_coefficients(size: tuple[int, int], bits: int) -> None:
    layout, step = Layout.make(EDGES, *size), ratios(800, 700, scale=1)
    plan = plan_step(step, layout, threshold=-700, bits=bits)
    members = np.concatenate([band.members for band in plan]) if plan else np.zeros(0, int)
    assert len(np.unique(members)) == len(members)
    assert (layout.spread(step).ravel()[members] >= -700).all()
    assert all(0 < band.groups <= len(band.members) and 1 <= band.bits <= 8 for band in plan)
    assert all(np.diff(band.starts()).min() > 0 for band in plan)
    rate = sum(coefficient_rate(band.log_ratio) * len(band.members) for band in plan) / 65536
    sent = sum(band.bits * band.groups for band in plan)
    slack = sum(band.bits for band in plan)
    assert rate + START_BITS - slack - bits < sent <= rate + START_BITS + slack


def test_coefficients_worth_many_bits_get_groups_of_many() -> None:
    layout = Layout.make(EDGES, 64, 64)
    plan = plan_step(np.full((3, len(EDGES)), 256 * 7), layout, threshold=0, bits=1)
    assert [(band.bits, band.groups) for band in plan] == [(4, int((3 * 64 * 64 * np.log2(129) / 2 + START_BITS) / 4))]


def test_tables_are_interpolated_between_levels_and_held_beyond() -> None:
    table = falling_table()
    levels = np.full(table.log_error.shape[1:], 300)
    assert np.array_equal(table.at(levels), (table.log_error[0] + table.log_error[1]) // 2)
    levels[1], levels[2] = 1023, 3
    assert np.array_equal(table.at(levels)[1], table.log_error[2][1])
    assert np.array_equal(table.at(levels)[2], table.log_error[0][2])


# Members, log ratio, groups, bits a group and sum of the members' places of each band.
PINNED = [
    (1, 498, 1, 8, 0), (1, 242, 1, 3, 3840), (2, -14, 1, 1, 7681), (4, -270, 2, 1, 4004),
    (13, -526, 2, 1, 20266), (51, -782, 4, 1, 67333),
]  # fmt: skip


def test_plans_do_not_depend_on_anything_but_integers() -> None:
    """Pinned: another value here is another format."""
    plan = plan_step(ratios(900, 640, scale=-1), Layout.make(EDGES, 48, 80), threshold=-800, bits=1)
    assert [(len(b.members), b.log_ratio, b.groups, b.bits, int(b.members.sum())) for b in plan] == PINNED


def test_thresholds_above_everything_code_nothing() -> None:
    assert plan_step(ratios(800, 700), Layout.make(EDGES, 20, 20), threshold=99_999, bits=1) == []


def test_error_tables_are_integers() -> None:
    table = falling_table()
    with pytest.raises(ValueError, match="error table wants integers"):
        ErrorTable(table.levels, table.edges, table.log_error.astype(float))


def test_shuffles_are_permutations_with_even_signs() -> None:
    order, signs = shuffle(5000, seed=1, step=2, band=3)
    assert sorted(order) == list(range(5000))
    assert set(signs) == {-1.0, 1.0}
    assert abs(signs.sum()) < 300
    assert np.corrcoef(order, np.arange(5000))[0, 1] == pytest.approx(0, abs=0.05)
    assert not np.array_equal(order, shuffle(5000, seed=1, step=2, band=4)[0])
