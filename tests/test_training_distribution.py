"""Distribution matching: where its gradient points, that the fake learns, and that runs with it resume."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from codling.errors import ConfigError
from codling.models.cod import CoD
from codling.models.denoiser import Denoiser
from codling.models.dit import TransformerConfig
from codling.training.distribution import CoDEstimate, DenoiserEstimate, DistributionMatching, Probe, load_estimate
from codling.training.loop import CHECKPOINT, train
from codling.training.oscar_run import OscarRun
from codling.training.recipes import oscar_weights
from codling.weights.store import Parts, save_model
from tests.conftest import tiny_config, tiny_model
from tests.tiny_oscar import image, tiny_oscar, tiny_run
from tests.training import CPU


class Constant(nn.Module):
    """Estimates the same colour whatever it sees."""

    def __init__(self, colour: float):
        super().__init__()
        self.colour = nn.Parameter(torch.tensor(colour))

    def forward(self, state: Tensor, probe: Probe) -> Tensor:
        return self.colour.expand_as(state)


def probe(images: Tensor, *, seed: int = 0) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    level = 0.1 + 0.8 * torch.rand(len(images), generator=generator)
    return Probe(level, torch.randn(images.shape, generator=generator), images)


def matching(base: nn.Module, run: OscarRun, *, learning_rate: float = 1e-2) -> DistributionMatching:
    out = DistributionMatching(base, name="base", learning_rate=learning_rate)
    out.distribute(run.engine)
    return out


@pytest.fixture
def run(pictures: Path) -> OscarRun:
    return OscarRun(tiny_run(pictures), CPU)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models to match: a denoiser, a CoD, a CoD of latents."""
    directory = tmp_path_factory.mktemp("bases")
    save_model(directory / "denoiser", Parts(tiny_oscar().denoiser))
    save_model(directory / "cod", Parts(tiny_model()))
    latent = TransformerConfig(head="ddt", channels=4, patch=2, width=16, heads=2, blocks=1, head_blocks=1)
    save_model(directory / "latent", Parts(CoD(tiny_config(space="sd-vae", transformer=latent))))
    return directory


def test_the_gradient_vanishes_where_both_agree(run: OscarRun, bases: Path) -> None:
    restored = torch.cat([image(64, 64, seed=seed) for seed in range(2)]).requires_grad_(True)
    for name in ("denoiser", "cod"):
        term = matching(load_estimate(str(bases / name), device=CPU), run).term(restored, probe(restored.detach()))
        (gradient,) = torch.autograd.grad(term, restored)
        assert term.item() < 1e-10 and float(gradient.abs().max()) * restored.numel() < 1e-5, name


def test_the_gradient_descends_from_fake_to_base_in_units_of_the_distance(run: OscarRun) -> None:
    """With constants: 1 for the base, -1 for the fake, pictures of 0 and .5, so distances of 1 and .5."""
    both = matching(Constant(1.0), run)
    nn.init.constant_(both.fake.colour, -1.0)  # type: ignore[arg-type]
    restored = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.5)]).requires_grad_(True)
    term = both.term(restored, probe(restored.detach()))
    (gradient,) = torch.autograd.grad(term, restored)
    directions = torch.tensor([2.0, 4.0])
    assert term.item() == pytest.approx(0.5 * float(directions.square().mean()))
    assert torch.allclose(-gradient * restored.numel(), directions.view(2, 1, 1, 1).expand_as(restored))
    assert both.base.colour.grad is None and both.fake.colour.grad is None


def test_the_fake_learns_restored_pictures_and_the_base_stays(run: OscarRun, bases: Path) -> None:
    restored = torch.full((4, 3, 32, 32), 0.7) + 0.02 * torch.randn(4, 3, 32, 32)
    for name in ("denoiser", "cod"):
        both = matching(load_estimate(str(bases / name), device=CPU), run)
        before = {key: value.clone() for key, value in both.base.state_dict().items()}
        losses = [float(both.learn(restored, probe(restored, seed=step))) for step in range(40)]
        assert sum(losses[-10:]) < 0.8 * sum(losses[:10]), name
        assert all(torch.equal(value, before[key]) for key, value in both.base.state_dict().items())
        # By now the fake knows the pictures better than the base, so the term drives them away from themselves.
        assert both.term(restored, probe(restored)).item() > 0


def test_a_base_of_tokens_keeps_them(run: OscarRun, bases: Path) -> None:
    both = matching(load_estimate(str(bases / "cod"), device=CPU), run)
    assert isinstance(both.fake, CoDEstimate)
    before = {key: value.clone() for key, value in both.fake.state_dict().items()}
    restored = torch.cat([image(32, 32, seed=seed) for seed in range(2)])
    both.learn(restored, probe(restored))
    changed = {key for key, value in both.fake.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("network.transformer.") for key in changed)


def test_the_term_reaches_the_denoiser_in_the_second_stage_only(pictures: Path, bases: Path) -> None:
    weights = dict.fromkeys(oscar_weights(), 0.0) | {"distribution": 1.0}
    run = OscarRun(tiny_run(pictures, weights=weights, distribution_base=str(bases / "denoiser")), CPU)
    run.model.load_state_dict(tiny_oscar().state_dict())
    assert run.matching is not None and isinstance(run.matching.fake, DenoiserEstimate)
    nn.init.normal_(run.matching.fake.network.last.weight)
    loss, terms = run.loss(torch.cat([image(48, 48, seed=seed) for seed in range(4)]))
    assert terms["distribution"].item() == pytest.approx(loss.item())
    loss.backward()
    assert float(run.model.denoiser.last.weight.grad.abs().max()) > 0
    first = OscarRun(tiny_run(pictures, weights=run.config.weights, restore_from=6), CPU)
    assert isinstance(first.model.denoiser, Denoiser)
    assert "distribution" not in first.loss(torch.cat([image(48, 48, seed=seed) for seed in range(4)]))[1]


def test_a_resumed_run_equals_an_uninterrupted_one(pictures: Path, bases: Path, tmp_path: Path) -> None:
    config = tiny_run(
        pictures,
        steps=4,
        restore_from=1,
        weights={**oscar_weights(), "distribution": 0.3},
        distribution_base=str(bases / "denoiser"),
    )
    whole = train(config, tmp_path / "whole", device=CPU, report=lambda _: None)

    def stop(line: str) -> None:
        if line.startswith("step 3 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(config, checkpoint_every=2, log_every=1), tmp_path / "parts", device=CPU, report=stop)
    resumed = train(config, tmp_path / "parts", device=CPU, report=lambda _: None)
    assert isinstance(whole, OscarRun) and isinstance(resumed, OscarRun)
    assert whole.matching is not None and resumed.matching is not None
    for a, b in ((whole.model, resumed.model), (whole.matching.fake, resumed.matching.fake)):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), name
    other = OscarRun(replace(config, distribution_base=str(bases / "cod")), CPU)
    with pytest.raises(ConfigError, match="the checkpoint's distribution_base is"):
        other.restore(tmp_path / "whole" / CHECKPOINT)


def test_bases_that_cannot_be_one(bases: Path) -> None:
    with pytest.raises(ConfigError, match="neither a denoiser nor a pixel-space CoD"):
        load_estimate(str(bases / "latent"), device=CPU)
    with pytest.raises(ConfigError, match="choose one like diffc-xs"):
        load_estimate("linear", device=CPU)
