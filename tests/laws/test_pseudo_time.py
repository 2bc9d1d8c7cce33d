"""Pseudo-times: the cosine of a noisy latent says its time, on the flow and on Stable Diffusion's schedule."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codling.codecs.pseudo_times import Place, ScheduledModel, measure
from codling.diffusion import pseudo_time
from codling.diffusion.posterior import signal_share
from codling.errors import ConfigError
from codling.evaluation.pseudo_times import axes_of, plot
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
        share = pseudo_time.signal_share(c, deviation=deviation)
        assert pseudo_time.cosine_at(time, deviation=deviation) == pytest.approx(c)
        assert pseudo_time.cosine_of(share, deviation=deviation) == pytest.approx(c)
        assert signal_share(1 - time) == pytest.approx(share)


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
    assert found.schedule is None
    for level, entry in zip(found.levels, model.levels, strict=True):
        assert level.told == Place(entry.time, signal_share(1 - entry.time), None)
        assert level.measured.time == pytest.approx(entry.time, abs=0.02)
        assert level.measured.share == pytest.approx(level.told.share, abs=0.02)
        assert level.measured.timestep is None
    assert [len(maps) for maps in found.maps] == [2, 2, 2]
    assert [maps[0].shape for maps in found.maps] == [(4, 4), (8, 8), (16, 16)]
    with pytest.raises(ConfigError, match="at least one"):
        measure(model, [])


class OnSchedule(Squares):
    """Its compressed latents are noisy ones of the published timesteps, of a network that is told others."""

    levels = tuple(RateLevel(8, 16, 0.5) for _ in PUBLISHED)
    timesteps = tuple(step + 7 for step in PUBLISHED)

    def signal_shares(self) -> torch.Tensor:
        return stable_diffusion_shares()

    def latent(self, image: torch.Tensor) -> torch.Tensor:
        self.seen = whitened(image)
        return self.seen

    def rough_latent(self, tokens: Tokens, level: int) -> torch.Tensor:
        share = self.signal_shares()[PUBLISHED[level]]
        drawn = torch.randn(self.seen.shape, generator=torch.Generator().manual_seed(level))
        along = (drawn * self.seen).mean((2, 3), keepdim=True)
        return share.sqrt() * self.seen + (1 - share).sqrt() * whitened(drawn - along * self.seen)


def whitened(latent: torch.Tensor) -> torch.Tensor:
    """Every channel at the root mean square 1."""
    return latent / latent.square().mean((2, 3), keepdim=True).sqrt()


def test_measuring_a_model_with_a_schedule_finds_the_published_timesteps() -> None:
    """Noise that is orthogonal to the latents, as in many dimensions it is, leaves nothing to chance."""
    model = OnSchedule()
    assert isinstance(model, ScheduledModel)
    found = measure(model, [image_of(noise_picture(64, 96))])
    assert found.deviation == pytest.approx(1)
    assert tuple(level.measured.timestep for level in found.levels) == PUBLISHED
    assert tuple(level.told.timestep for level in found.levels) == model.timesteps
    for level, step in zip(found.levels, PUBLISHED, strict=True):
        assert level.measured.share == pytest.approx(float(stable_diffusion_shares()[step]), rel=1e-5)


def test_plots_have_an_axis_for_every_way_to_say_a_time(tmp_path: Path) -> None:
    """On each of them every level measured as it was made lies on the curve of noisy latents."""
    pytest.importorskip("matplotlib")
    picture = image_of(noise_picture(64, 96))
    for model, labels in ((Noisy(), ["flow", "alpha-bar,"]), (OnSchedule(), ["flow", "alpha-bar,", "timestep"])):
        found = measure(model, [picture])
        axes = axes_of(found)
        assert [axis.label.split()[0] for axis in axes] == labels
        for axis in axes:
            for level in found.levels:
                curve = np.interp(axis.coordinate(level.measured), axis.points, axis.cosines)
                assert curve == pytest.approx(level.cosine, abs=1e-3)
        plot(found, tmp_path / f"{len(labels)}.svg", force=False)
        drawn = (tmp_path / f"{len(labels)}.svg").read_text()
        assert all(axis.label in drawn for axis in axes)
