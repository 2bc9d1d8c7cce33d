"""The sliced distance as a term: the metric's own bands, blind to places, and its gradient makes texture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codling.errors import ConfigError
from codling.pictures import from_image_array, to_image_array
from codling.swd import laplacian_pyramid, swd
from codling.training.oscar_run import OscarRun
from codling.training.recipes import oscar_weights
from codling.training.sliced import bands, sliced
from tests.tiny_oscar import CPU, image, tiny_run


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture
def photo(photos: list[Path]) -> torch.Tensor:
    return torch.from_numpy(to_image_array(np.asarray(Image.open(photos[0]).convert("RGB"))))[None, :, 90:218, 60:221]


@pytest.mark.parametrize("size", [(32, 32), (97, 70), (33, 130)])
def test_bands_are_those_of_the_metric(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).random((*size, 3), np.float32)
    wanted = laplacian_pyramid(picture)[:-1]
    found = bands(torch.from_numpy(picture.transpose(2, 0, 1))[None])
    assert len(found) == len(wanted) >= 1
    for mine, theirs in zip(found, wanted, strict=True):
        assert np.allclose(mine[0].numpy().transpose(1, 2, 0), theirs, atol=1e-6)


def test_another_draw_of_a_texture_is_near_and_none_is_far(photo: torch.Tensor) -> None:
    """Though its squared error is twice as large: what a mean loses is what the term asks for."""
    assert float(sliced(photo, photo, generator())) == 0
    one, other = torch.randn(2, 1, 3, 128, 128, generator=generator()).mul(0.2)
    none = torch.zeros_like(one)
    assert float((other - one).square().mean()) > 1.8 * float((none - one).square().mean())
    assert float(sliced(other, one, generator())) < 0.1 * float(sliced(none, one, generator()))


def test_descent_lowers_the_metric(photo: torch.Tensor) -> None:
    """From a blurred picture, by its gradient alone: the metric's directions are others than those descended along."""
    start = torch.nn.functional.avg_pool2d(photo, 5, 1, 2)
    moved = start.clone().requires_grad_()
    optimiser, random = torch.optim.Adam([moved], lr=0.01), generator()
    for _ in range(40):
        optimiser.zero_grad()
        sliced(moved, photo, random).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    original, before, after = (from_image_array(x[0].detach().clamp(-1, 1).numpy()) for x in (photo, start, moved))
    assert swd(original, after) < 0.5 * swd(original, before)


def test_a_flat_sample_has_no_infinite_share() -> None:
    """Each is in units of its own true picture's deviation, but no smaller than what can be seen."""
    flat = torch.zeros(1, 3, 64, 64)
    speck = flat + 1e-3 * torch.randn(flat.shape, generator=generator())
    assert float(sliced(speck, flat, generator())) < 0.1


def test_too_small_for_a_band_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 px"):
        sliced(torch.zeros(1, 3, 31, 64), torch.zeros(1, 3, 31, 64), generator())
    with pytest.raises(ConfigError, match=r"weights\.sliced needs a crop of at least 32"):
        tiny_run(Path(), crop=16, weights=oscar_weights() | {"sliced": 1.0})


def test_training_lowers_it(pictures: Path) -> None:
    weights = dict.fromkeys(oscar_weights(), 0.0) | {"sliced": 1.0}
    config = tiny_run(pictures, steps=60, weights=weights, learning_rate=4e-3, average=0.5)
    run = OscarRun(config, CPU)
    batch = image(48, 48).repeat(4, 1, 1, 1)
    run.step = config.restore_from or 0
    losses = [run.train_step(batch)["sliced"] for _ in range(config.steps)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
