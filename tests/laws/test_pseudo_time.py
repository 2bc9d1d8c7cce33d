"""Pseudo-times: the cosine of a noisy latent says its time, on the flow and on Stable Diffusion's schedule."""

import pytest
import torch

from codling.codecs.pseudo_times import measure
from codling.diffusion import pseudo_time
from codling.diffusion.posterior import signal_share
from codling.errors import ConfigError
from codling.models.rate_levels import LatentModel, RateLevel, Tokens
from tests.conftest import noise_picture
from tests.oscar_stand_in import Squares
from tests.test_oscar import image_of

PUBLISHED = (500, 400, 310, 280, 210, 190, 170, 150)


def stable_diffusion_shares() -> torch.Tensor:
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)


def test_the_published_list_comes_from_its_cosines() -> None:
    """With latents of unit variance the cosine at a timestep is the root of alpha-bar; three digits of it will do."""
    shares = stable_diffusion_shares()
    for step, rounded in zip(PUBLISHED, (0.526, 0.652, 0.757, 0.790, 0.859, 0.877, 0.894, 0.910), strict=True):
        exact = float(shares[step].sqrt())
        assert pseudo_time.timestep_of(pseudo_time.signal_share(exact), shares) == step
        assert abs(pseudo_time.timestep_of(pseudo_time.signal_share(rounded), shares) - step) <= 1


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("time", [0.1, 0.4, 0.7, 0.95])
def test_a_noisy_latent_is_put_where_it_was_made(time: float, deviation: float) -> None:
    generator = torch.Generator().manual_seed(0)
    latent = deviation * torch.randn(2, 4, 96, 96, generator=generator)
    noise = torch.randn(latent.shape, generator=generator)
    s = pseudo_time.root_mean_square(latent)

    c = float(pseudo_time.cosine(latent, time * latent + (1 - time) * noise).mean())
    assert pseudo_time.flow_time(c, deviation=s) == pytest.approx(time, abs=0.01)
    assert pseudo_time.cosine_at(time, deviation=s) == pytest.approx(c, abs=0.01)

    a = signal_share(1 - time)
    c = float(pseudo_time.cosine(latent, a**0.5 * latent + (1 - a) ** 0.5 * noise).mean())
    assert pseudo_time.signal_share(c, deviation=s) == pytest.approx(a, abs=0.01)


@pytest.mark.parametrize("deviation", [0.3, 1.0, 3.0])
def test_flow_and_variance_preserving_times_are_the_same_place(deviation: float) -> None:
    for c in (0.0, 0.2, 0.6, 0.99, 1.0):
        time = pseudo_time.flow_time(c, deviation=deviation)
        assert pseudo_time.cosine_at(time, deviation=deviation) == pytest.approx(c)
        assert signal_share(1 - time) == pytest.approx(pseudo_time.signal_share(c, deviation=deviation))


def test_a_channels_scale_does_not_matter() -> None:
    latent, rough = torch.randn(2, 1, 4, 8, 8)
    scale = torch.tensor([0.1, 1.0, 5.0, 30.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(pseudo_time.cosine(latent, rough), pseudo_time.cosine(latent, rough * scale))
    assert float(pseudo_time.cosine(latent, torch.zeros_like(latent)).abs().max()) == 0


@pytest.mark.parametrize(("c", "deviation"), [(-0.1, 1.0), (1.1, 1.0), (0.5, 0.0), (float("nan"), 1.0)])
def test_cosines_of_no_noisy_state(c: float, deviation: float) -> None:
    for function in (pseudo_time.flow_time, pseudo_time.signal_share):
        with pytest.raises(ConfigError, match="no noisy state"):
            function(c, deviation=deviation)


class Noisy(Squares):
    """Its compressed latents really are noisy ones, at known times."""

    levels = (RateLevel(32, 6, 0.2), RateLevel(16, 16, 0.5), RateLevel(8, 16, 0.8))

    def latent(self, image: torch.Tensor) -> torch.Tensor:
        self.seen = 2 * image
        return self.seen

    def rough_latent(self, tokens: Tokens, level: int) -> torch.Tensor:
        time = self.levels[level].time
        noise = torch.randn(self.seen.shape, generator=torch.Generator().manual_seed(level))
        return time * self.seen + (1 - time) * noise


def test_measuring_a_model_finds_its_times() -> None:
    images = [image_of(noise_picture(100, 120, seed=seed)) for seed in range(2)]
    model = Noisy()
    assert isinstance(model, LatentModel)
    found = measure(model, images)
    for level, entry in zip(found.levels, model.levels, strict=True):
        assert level.told == entry.time
        assert level.time == pytest.approx(entry.time, abs=0.02)
    assert [len(maps) for maps in found.maps] == [2, 2, 2]
    assert [maps[0].shape for maps in found.maps] == [(4, 4), (8, 8), (16, 16)]
    with pytest.raises(ConfigError, match="at least one"):
        measure(model, [])
