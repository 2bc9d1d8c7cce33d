"""OSCAR's own loss terms, of errors whose terms are known."""

import pytest
import torch
from torch import Tensor

from codling.training.oscar_terms import Restored, cosine, distances, gradient, pixel, squared

ONE = torch.ones(1, 1, 1, 1)


def ramp(*, across: float, down: float, side: int = 16) -> Tensor:
    """An image (1, 3, side, side) that grows by so much from one sample to the next."""
    steps = torch.arange(float(side))
    return (across * steps[None, :] + down * steps[:, None]).expand(1, 3, side, side)


@pytest.mark.parametrize(("across", "down"), [(1.0, 0.0), (0.0, -1.0), (1.0, 2.0)])
def test_neighbours_in_the_error_of_a_ramp_differ_by_its_slope(across: float, down: float) -> None:
    """And by twice and four times as much in pictures of half and a quarter the size."""
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = gradient(image + ramp(across=across, down=down), image, ONE)
    assert float(found) == pytest.approx((abs(across) + abs(down)) * (1 + 2 + 4) / 3, rel=1e-5)


def test_an_error_that_is_the_same_everywhere_has_no_gradient_term() -> None:
    image = ramp(across=0.1, down=0.2)
    assert float(gradient(image + 0.5, image, ONE)) == pytest.approx(0, abs=1e-6)


def test_errors_are_in_units_of_what_is_expected_of_each_sample() -> None:
    image, scale = torch.zeros(2, 3, 16, 16), torch.tensor([0.5, 4.0]).view(2, 1, 1, 1)
    error = ramp(across=1.0, down=0.0)
    assert float(gradient(image + error, image, scale)) == pytest.approx(7 / 3 * (1 / 0.5 + 1 / 4) / 2)
    assert float(squared(image - 0.2, image, scale)) == pytest.approx(0.2**2 * (1 / 0.5**2 + 1 / 4**2) / 2)


def test_published_terms_are_in_units_of_pixels() -> None:
    image = torch.zeros(2, 3, 8, 8)
    restored = image + torch.tensor([0.3, -0.1]).view(2, 1, 1, 1)
    assert float(pixel(restored, image)) == pytest.approx(0.2)


def test_the_cosine_term_is_0_of_equal_1_of_unrelated_and_2_of_opposite_pictures() -> None:
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(cosine(0.5 * image, image)) == pytest.approx(0, abs=1e-6)
    assert float(cosine(-image, image)) == pytest.approx(2)
    halves = torch.zeros(2, 1, 3, 8, 8)
    halves[0, ..., :4], halves[1, ..., 4:] = 1.0, 1.0
    assert float(cosine(*halves)) == pytest.approx(1)
    # A mean over samples and colours: one of six is the opposite.
    flipped = image.clone()
    flipped[0, 1] *= -1
    assert float(cosine(flipped, image)) == pytest.approx(2 / 6, rel=1e-5)


def test_all_terms_compare_the_restored_picture_with_the_true_one() -> None:
    image, error = torch.ones(1, 3, 16, 16), ramp(across=1.0, down=0.0)
    terms = distances(Restored(image + error, torch.full_like(image, 9.0), 2 * ONE), image)
    restored = 1 + torch.arange(16.0)
    expected = {
        "squared": float(torch.arange(16.0).square().mean()) / 4,
        "gradient": 7 / 3 / 2,
        "pixel": 7.5,
        "cosine": 1 - float(restored.mean() / restored.square().mean().sqrt()),
    }
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
