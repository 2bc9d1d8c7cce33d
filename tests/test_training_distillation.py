"""Distillation of sampling: the teacher solves the flow, and a step learns what it arrives at."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codling.codecs.backbones import DenoiserBackbone
from codling.diffusion.guidance import score_scaled
from codling.diffusion.samplers import sampler
from codling.errors import ConfigError
from codling.models.denoiser import Denoiser
from codling.nn.spectral import from_spectrum, to_spectrum
from codling.training.distillation import SampledTeacher
from codling.training.loop import train
from codling.training.oscar_run import OscarRun
from codling.training.recipes import oscar_weights
from codling.weights.store import Parts, save_model
from tests.tiny_oscar import CPU, image, tiny_oscar, tiny_run


@pytest.fixture(scope="module")
def linear() -> Denoiser:
    """A denoiser that corrects nothing, so that its flow is that of Gaussian pictures.

    No frequency is so weak that it only shows in the last steps, which would hide the order.
    """
    network = tiny_oscar().denoiser
    network.filter.log_power.copy_(torch.linspace(1, 0.05, network.filter.config.knots).log().expand(3, -1))
    for parameter in network.last.parameters():
        torch.nn.init.zeros_(parameter)
    return network


def test_of_gaussians_samples_are_the_states_scaled_to_the_power_of_pictures(linear: Denoiser) -> None:
    """The flow's own solution: coefficients of variance (1 - s)^2 P + s^2 go straight to variance P. Order 2."""
    s, random = torch.tensor([0.9, 0.35]), torch.Generator().manual_seed(1)
    state = torch.randn(2, 3, 32, 48, generator=random)
    power, share = linear.filter.power(32, 48), s.view(-1, 1, 1, 1)
    wanted = from_spectrum(to_spectrum(state) * (power / ((1 - share).square() * power + share.square())).sqrt())

    def error(steps: int) -> Tensor:
        found = SampledTeacher(linear, steps=steps).sample(state, s)
        return (found - wanted).square().mean((1, 2, 3)).sqrt()

    errors = [error(steps) for steps in (16, 32, 64)]
    assert float((errors[2] / wanted.square().mean((1, 2, 3)).sqrt()).max()) < 0.01
    for coarse, fine in itertools.pairwise(errors):
        assert bool((coarse / fine > 3).all())


@pytest.mark.parametrize(("noise", "scale"), [(0.5, 0.9), (0.8, 0.92)])
def test_it_samples_as_the_codec_does(noise: float, scale: float) -> None:
    """Along the flow from t = 1 - noise to 1, with the score scaled where samples are to be rougher."""
    network = tiny_oscar().denoiser
    velocity = score_scaled(DenoiserBackbone(network).velocity(b"", height=32, width=48), scale)
    state = 0.5 * image(32, 48) + 0.5 * torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        wanted = sampler("adams2")(velocity, state, torch.linspace(1 - noise, 1, 7, dtype=torch.float64))
    found = SampledTeacher(network, steps=6, roughness=0.2).sample(state, torch.tensor([noise]))
    assert torch.allclose(found, wanted, atol=1e-4)


def test_the_noise_decides_the_sample() -> None:
    teacher, s = SampledTeacher(tiny_oscar().denoiser, steps=4), torch.tensor([0.6])
    one, other = (0.4 * image(32, 32) + 0.6 * torch.randn(1, 3, 32, 32) for _ in range(2))
    assert torch.equal(teacher.sample(one, s), teacher.sample(one, s))
    assert not torch.allclose(teacher.sample(one, s), teacher.sample(other, s), atol=0.05)


def test_a_step_learns_what_sampling_arrives_at(pictures: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "base", Parts(tiny_oscar().denoiser))
    weights = dict.fromkeys(oscar_weights(), 0.0) | {"sampled": 1.0}
    config = tiny_run(
        pictures, steps=60, weights=weights, sampled_from=str(tmp_path / "base"), sampled_steps=3, jump_share=0.5,
        learning_rate=4e-3, log_every=20, checkpoint_every=60, average=0.5,
    )  # fmt: skip
    run = OscarRun(config, CPU)
    batch = image(48, 48).repeat(4, 1, 1, 1)
    run.step = config.restore_from or 0
    losses = [run.train_step(batch)["sampled"] for _ in range(config.steps)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    # The teacher is no part of what is learned or kept.
    assert not any(parameter.requires_grad for parameter in run.teacher.network.parameters())  # type: ignore[union-attr]


def test_a_teacher_must_be_a_denoiser(pictures: Path, tmp_path: Path) -> None:
    weights = oscar_weights() | {"sampled": 1.0}
    with pytest.raises(ConfigError, match="sampled_from 'linear' is not a denoiser"):
        train(tiny_run(pictures, weights=weights, sampled_from="linear"), tmp_path, device=CPU)
