"""CoD with a convolutional denoiser: how the condition enters, that it codes pictures of any size, and its training."""

from pathlib import Path

import pytest
import torch
from torch import nn

from codling.codecs.backbones import CoDBackbone
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.cod import CoDCodec
from codling.errors import ConfigError
from codling.models.cod import CoD, CoDConfig
from codling.models.denoiser import ConditionalDenoiser, Denoiser, DenoiserConfig
from codling.models.wiener import WienerConfig
from codling.training.cod_run import CoDRun
from codling.training.loop import train
from codling.weights.store import Parts, load_parts, save_model
from tests.conftest import tiny_config, tiny_model
from tests.tiny_oscar import image
from tests.training import CPU, tiny_run

DENOISER = DenoiserConfig(widths=(4, 8, 8), blocks=(1, 1, 1), embedding=8, filter=WienerConfig(knots=16), tile=64,
                          overlap=32)  # fmt: skip


def convolutional(**changes: object) -> CoDConfig:
    return tiny_config(**{"transformer": None, "convolution": DENOISER, "sigma_data": None, **changes})


def with_random_hints(model: CoD) -> CoD:
    """As after training: the condition matters."""
    for layer in (*model.denoiser.hints, model.denoiser.last):
        nn.init.normal_(layer.weight, std=0.2)  # type: ignore[arg-type]
    return model


def test_a_condition_is_not_used_at_first() -> None:
    torch.manual_seed(0)
    denoiser, plain = ConditionalDenoiser(DENOISER, 16), Denoiser(DENOISER)
    nn.init.normal_(denoiser.last.weight)
    plain.load_state_dict(denoiser.state_dict(), strict=False)
    x, s = torch.randn(2, 3, 32, 48), torch.tensor([0.9, 0.2])
    assert torch.equal(denoiser.conditional(x, s, torch.randn(2, 16, 2, 3)), plain(x, s))


def test_a_place_of_the_condition_is_read_where_it_lies() -> None:
    """With no block looking around, a place changes its own 16 px and nothing else, at each stride."""
    torch.manual_seed(0)
    denoiser = ConditionalDenoiser(DenoiserConfig(widths=(4, 8, 8), blocks=(0, 0, 0), embedding=8), 16)
    nn.init.normal_(denoiser.last.weight)
    x, s, condition = torch.randn(1, 3, 64, 64), torch.tensor([0.5]), torch.randn(1, 16, 4, 4)
    denoiser.requires_grad_(False)
    for hint in denoiser.hints:
        for other in denoiser.hints:
            nn.init.zeros_(other.weight)  # type: ignore[arg-type]
        nn.init.normal_(hint.weight)  # type: ignore[arg-type]
        changed = condition.clone()
        changed[..., 1, 2] += 1
        difference = (denoiser.conditional(x, s, changed) - denoiser.conditional(x, s, condition)).abs()[0].amax(0)
        assert float(difference[16:32, 32:48].min()) > 1e-6
        difference[16:32, 32:48] = 0
        assert float(difference.max()) == 0


def test_at_t_0_the_velocity_leads_to_the_estimate_and_at_t_1_it_is_finite() -> None:
    model = with_random_hints(tiny_model(convolutional()))
    noise, condition = torch.randn(1, 3, 32, 32), torch.randn(1, 16, 2, 2)
    with torch.no_grad():
        one_step = noise + model.velocity(noise, torch.zeros(1), condition)
        estimate = model.denoiser.conditional(noise, torch.ones(1), condition)
        assert torch.allclose(one_step, estimate, atol=1e-5)
        assert bool(model.velocity(noise, torch.ones(1), condition).isfinite().all())


@pytest.mark.parametrize(("height", "width"), [(37, 21), (64, 64), (150, 90)])
def test_pictures_of_any_size_come_back(height: int, width: int) -> None:
    """In one tile and in several; by steps, with guidance and without."""
    codec = CoDCodec(with_random_hints(tiny_model(convolutional())), name="tiny", model_id=1)
    payload = codec.encode(image(height, width), RateTarget())
    pictures = [
        codec.decode(payload, height=height, width=width, options=DecodeOptions(steps=steps, guidance=guidance))
        for steps, guidance in ((1, 1.0), (3, 1.0), (3, 2.0))
    ]
    assert all(picture.shape == (1, 3, height, width) for picture in pictures)
    assert not torch.allclose(pictures[1], pictures[2], atol=1e-4)
    again = codec.decode(payload, height=height, width=width, options=DecodeOptions(steps=3, guidance=1.0))
    assert torch.equal(again, pictures[1])


def test_it_is_a_model_for_diffc_too() -> None:
    backbone = CoDBackbone(CoDCodec(tiny_model(convolutional()), name="tiny", model_id=1))
    assert (backbone.channels, backbone.stride) == (3, 1)
    with torch.inference_mode():
        v = backbone.velocity(b"", height=32, width=32)(torch.randn(1, 3, 32, 32), torch.tensor([0.5]))
    assert v.shape == (1, 3, 32, 32)


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    model = with_random_hints(tiny_model(convolutional()))
    save_model(tmp_path, Parts(model))
    loaded = load_parts(tmp_path, device=CPU).model
    assert isinstance(loaded, CoD)
    assert loaded.config == model.config
    x, t, condition = torch.randn(1, 3, 32, 32), torch.tensor([0.4]), torch.randn(1, 16, 2, 2)
    with torch.no_grad():
        assert torch.equal(loaded.velocity(x, t, condition), model.velocity(x, t, condition))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer": None}, "got neither"),
        ({"convolution": DENOISER}, "got both"),
        ({"transformer": None, "convolution": DENOISER}, "sigma_data to null"),
        ({"transformer": None, "convolution": DENOISER, "sigma_data": None, "space": "sd-vae"}, "pixel space"),
    ],
)
def test_networks_that_are_not_one(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


def test_a_denoiser_begins_as_a_smaller_one() -> None:
    torch.manual_seed(0)
    prior = Denoiser(DENOISER)
    nn.init.normal_(prior.last.weight)
    grown = ConditionalDenoiser(DenoiserConfig(**{**vars(DENOISER), "blocks": (2, 3, 1)}), 16)
    grown.begin_as(prior)
    x, s = torch.randn(1, 3, 32, 32), torch.tensor([0.6])
    assert torch.equal(grown.conditional(x, s, torch.randn(1, 16, 2, 2)), prior(x, s))
    for blocks, widths, message in (((1, 1, 0), (4, 8, 8), "has more"), ((1, 1, 1), (4, 8, 12), "widths")):
        smaller = Denoiser(DenoiserConfig(**{**vars(DENOISER), "blocks": blocks, "widths": widths}))
        with pytest.raises(ConfigError, match=message):
            smaller.begin_as(prior)


def test_training_begins_with_the_prior_and_the_condition_is_learned(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    prior = Denoiser(DENOISER)
    nn.init.normal_(prior.last.weight, std=0.01)
    save_model(tmp_path / "prior", Parts(prior))
    settings = {"model": convolutional(), "prior": str(tmp_path / "prior"), "one_step_share": 0.5}
    run = CoDRun(tiny_run(pictures, **settings), CPU)
    run.prepare(list)
    assert torch.equal(run.averaged_model().denoiser.last.weight, prior.last.weight)
    whole = train(tiny_run(pictures, **settings), tmp_path / "whole", device=CPU)
    assert all(bool(hint.weight.any()) for hint in whole.model.denoiser.hints)
    # Stopped and gone on with it is the same.
    train(tiny_run(pictures, **settings), tmp_path / "parts", device=CPU, max_minutes=0)
    parts = train(tiny_run(pictures, **settings), tmp_path / "parts", device=CPU)
    assert parts.step == whole.step
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name


def test_what_a_convolution_cannot_be_trained_with(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'linear' is not a denoiser"):
        train(tiny_run(pictures, model=convolutional(), prior="linear"), tmp_path / "a", device=CPU)
    with pytest.raises(ConfigError, match=r"does not fit.*widths"):
        train(tiny_run(pictures, model=convolutional(), prior="diffc-xs"), tmp_path / "b", device=CPU)
