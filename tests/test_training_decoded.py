"""What other models have decoded, as samples that OSCAR's network learns to restore."""

from pathlib import Path

import pytest
import torch

from codling.codecs.cod import CoDCodec
from codling.models.oscar import Oscar
from codling.training.decoded import OneStep, decoded_by
from codling.training.oscar_run import OscarRun
from codling.training.walks import Jumps
from tests.tiny_oscar import CPU, image, tiny_oscar, tiny_run

NUMBERS = [(0, 5, 0), (0, 5, 1)]


@pytest.fixture(scope="module")
def network() -> Oscar:
    return tiny_oscar()


@pytest.fixture(scope="module")
def one_step(network: Oscar) -> OneStep:
    found = decoded_by("cod-xs", network, device=CPU)
    assert isinstance(found, OneStep)
    return found


def test_a_models_kind_decides_what_is_drawn(one_step: OneStep, network: Oscar) -> None:
    assert isinstance(one_step.codec, CoDCodec)
    assert isinstance(decoded_by("diffc-xs", network, device=CPU), Jumps)


def test_cods_pictures_are_drawn_as_they_are_decoded(one_step: OneStep, network: Oscar) -> None:
    """Coarse images are those of the codec, states these with noise at the fraction that decoding takes."""
    images = torch.cat([image(48, 48, seed=seed) for seed in (1, 2)])
    state, coarse, s = one_step.draw(images, NUMBERS)
    assert state.shape == coarse.shape == images.shape
    assert one_step.codec.error is not None
    assert torch.equal(s, network.noise_of(torch.tensor([one_step.codec.error] * 2)))
    for picture, original in zip(coarse, images, strict=True):
        # The start noise is drawn anew; a mean of all pictures that fit hardly depends on it.
        wanted = one_step.codec.faithful(one_step.codec.indices(original[None])[None])[0]
        assert (picture - wanted).square().mean() < 0.1 * (wanted - original).square().mean()
    noise = (state - (1 - s.view(-1, 1, 1, 1)) * coarse) / s.view(-1, 1, 1, 1)
    assert noise.mean().abs() < 0.05
    assert (noise.std() - 1).abs() < 0.05


def test_draws_are_a_function_of_their_numbers(one_step: OneStep) -> None:
    images = torch.cat([image(32, 48, seed=seed) for seed in (1, 2)])
    both = one_step.draw(images, NUMBERS)
    alone = one_step.draw(images[1:], NUMBERS[1:])
    for whole, part in zip(both, alone, strict=True):
        assert torch.allclose(whole[1:], part, atol=1e-5)
    other = one_step.draw(images[1:], [(0, 6, 1)])
    assert not torch.allclose(other[0], alone[0], atol=0.1)


def test_shares_are_divided_among_the_models_that_are_finished(pictures: Path) -> None:
    run = OscarRun(tiny_run(pictures, jump_share=0.4, finish_share=0.3), CPU)
    assert {name: share for name, (_, share) in run.others.items()} == {"linear": 0.4, "diffc-xs": 0.15, "cod-xs": 0.15}
    terms = run.train_step(torch.cat([image(48, 48, seed=seed) for seed in range(4)]))
    assert all(value == value for value in terms.values())
    assert not any(parameter.requires_grad for parameter in run.others["cod-xs"][0].codec.model.parameters())  # type: ignore[attr-defined]
