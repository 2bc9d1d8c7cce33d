"""CoD's own finisher: the network, what is decoded with it, and its training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.cod import CoDCodec
from codling.errors import ConfigError
from codling.models.cod import CoD, CoDConfig
from codling.models.denoiser import DenoiserConfig
from codling.models.dit import TransformerConfig
from codling.models.wiener import WienerConfig
from codling.training.cod_run import CoDRun
from codling.training.data import load_pictures, training_batch
from codling.training.draws import step_generator
from codling.training.loop import train
from codling.training.recipes import published_weights
from codling.training.sliced import sliced
from codling.training.terms import Draws, finisher_step
from codling.weights.registry import load_network
from codling.weights.store import Parts, load_parts, save_model
from tests.conftest import tiny_config, tiny_model
from tests.tiny_oscar import image
from tests.training import CPU, tiny_run

FINISHER = DenoiserConfig(widths=(4, 8), blocks=(1, 1), embedding=8, filter=WienerConfig(knots=16), tile=64,
                          overlap=32)  # fmt: skip


def with_finisher(**changes: object) -> CoDConfig:
    return tiny_config(**{"finisher": FINISHER, "finisher_noise": 0.4, **changes})


def trained(config: CoDConfig | None = None) -> CoD:
    """As after training: the finisher changes the picture, and how depends on the condition."""
    model = tiny_model(config or with_finisher())
    for layer in (*model.finisher.hints, model.finisher.last):
        nn.init.normal_(layer.weight, std=0.2)  # type: ignore[arg-type]
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def codec() -> CoDCodec:
    return CoDCodec(trained(), name="tiny", model_id=1)


def test_a_new_finisher_leaves_the_picture_and_a_trained_one_reads_all_it_is_given() -> None:
    x, noise, condition = torch.randn(2, 3, 32, 48), torch.randn(2, 3, 32, 48), torch.randn(2, 16, 2, 3)
    with torch.no_grad():
        assert torch.equal(tiny_model(with_finisher()).finish(x, noise, condition), x)
    model = trained()
    found = model.finish(x, noise, condition)
    for changed in (
        model.finish(x + 0.1, noise, condition) - 0.1,
        model.finish(x, noise.flip(0), condition),
        model.finish(x, noise, condition.flip(0)),
        trained(with_finisher(finisher_noise=0.2)).finish(x, noise, condition),
    ):
        assert (found - changed).abs().mean() > 1e-4
    # Pictures do not see each other.
    assert torch.allclose(model.finish(x[1:], noise[1:], condition[1:]), found[1:], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(37, 21), (64, 64), (150, 90)])
def test_finished_is_what_is_decoded_unless_steps_are_asked_for(codec: CoDCodec, height: int, width: int) -> None:
    payload = codec.encode(image(height, width), RateTarget())
    indices = codec.decode_indices(payload, height=height, width=width)

    def decoded(**options: object) -> Tensor:
        return codec.decode(payload, height=height, width=width, options=DecodeOptions(**options))  # type: ignore[arg-type]

    found = decoded()
    assert found.shape == (1, 3, height, width)
    assert torch.equal(found, codec.finished(indices)[..., :height, :width])
    assert not torch.equal(found, decoded(seed=1))
    assert torch.equal(decoded(steps=1, guidance=1.0), codec.faithful(indices)[..., :height, :width])
    sampled = decoded(steps=codec.model.config.steps)
    for options in ({"guidance": codec.model.config.guidance}, {"sampler": codec.model.config.sampler}):
        assert torch.equal(decoded(**options), sampled)
    assert not torch.equal(found, sampled)


def test_in_one_tile_it_is_the_network_on_the_faithful_picture(codec: CoDCodec) -> None:
    indices = codec.indices(image(64, 64))[None]
    noise = codec._noise(indices, seed=3)
    condition = codec.model.condition_codec.decode(indices)
    one_step = noise + codec.model.velocity(noise, torch.zeros(1), condition)
    wanted = codec.model.finish(one_step, noise, condition)
    assert torch.allclose(codec.finished(indices, seed=3), wanted, atol=1e-4)


def test_models_with_and_without_one_are_saved(tmp_path: Path) -> None:
    for name, model in (("with", trained()), ("without", tiny_model())):
        save_model(tmp_path / name, Parts(model), precision="float32")
        found = load_parts(tmp_path / name, device=CPU).model
        assert isinstance(found, CoD)
        assert found.config == model.config
        for key, value in model.state_dict().items():
            assert torch.equal(found.state_dict()[key], value), key


def draws_for(photos: Tensor, places: range) -> Draws:
    return Draws.make(photos, places, batch=4, null_condition=0.0, one_step_share=0.0, seed=0, step=0)


def test_the_terms_are_those_of_what_is_decoded() -> None:
    model, photos = trained(), torch.cat([image(64, 64, seed=seed) for seed in range(4)])
    draws = draws_for(photos, range(4))
    terms = finisher_step(model, photos, draws, {}).terms
    condition = model.condition_codec.decode(model.condition_codec.encode(photos))
    one_step = draws.noise + model.velocity(draws.noise, torch.zeros(4), condition)
    made = model.finish(one_step, draws.noise, condition)
    assert terms["finished"].item() == pytest.approx((made - photos).square().mean().item(), rel=1e-4)
    assert terms["sliced"].item() == pytest.approx(sliced(made, photos, step_generator(1, 0)).item(), rel=1e-4)
    # Two processes have the whole's terms as the mean of theirs.
    halves = [finisher_step(model, photos[list(p)], draws_for(photos[list(p)], p), {}).terms for p in
              (range(2), range(2, 4))]  # fmt: skip
    for name, term in terms.items():
        assert term.item() == pytest.approx((halves[0][name] + halves[1][name]).item() / 2, rel=1e-4), name


def test_the_finisher_learns_and_nothing_else_does(pictures: Path) -> None:
    config = tiny_run(pictures, model=with_finisher(), finish=True, steps=1000, learning_rate=4e-3)
    run, found = CoDRun(config, CPU), load_pictures(pictures, crop=64).pictures
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    batch = training_batch(found, 0, batch=4, crop=64, seed=0)
    errors = [run.train_step(batch)["sliced"] for _ in range(40)]
    assert np.mean(errors[-5:]) < 0.9 * np.mean(errors[:5])
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("finisher.") for name in changed)
    pair = [np.asarray(picture) for picture in found[:2]]
    assert {"PSNR finished", "SWD finished"} <= set(run.validate(pair))
    assert len(run.samples(pair)) == 5


def test_learned_distances_count_where_they_have_a_weight(pictures: Path, random_networks: object) -> None:
    photos = torch.cat([image(64, 64, seed=seed) for seed in range(4)])
    found = {}
    for weight in (0.0, 2.0):
        weights = {**published_weights(), "lpips_alex": weight}
        run = CoDRun(tiny_run(pictures, model=with_finisher(), finish=True, weights=weights), CPU)
        run.model.load_state_dict(trained().state_dict())
        loss, found[weight] = run.loss(photos)
        others = sum(published_weights()[name] * found[weight][name].item() for name in ("finished", "sliced"))
        learned = found[weight].get("lpips_alex", torch.zeros(())).item()
        assert loss.item() == pytest.approx(others + weight * learned, rel=1e-5)
        assert learned > 0 if weight else "lpips_alex" not in found[weight]
        loss.backward()
        assert float(run.model.finisher.last.weight.grad.abs().max()) > 0


def test_a_run_of_it_is_resumed_to_the_same_weights(pictures: Path, tmp_path: Path) -> None:
    config = tiny_run(pictures, model=with_finisher(), finish=True, steps=4)
    save_model(tmp_path / "model", Parts(trained()))
    silent = {"device": CPU, "report": lambda _: None, "begin_from": str(tmp_path / "model")}
    whole = train(config, tmp_path / "whole", **silent)  # type: ignore[arg-type]
    train(config, tmp_path / "parts", max_minutes=0, **silent)  # type: ignore[arg-type]
    resumed = train(config, tmp_path / "parts", **silent)  # type: ignore[arg-type]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize("frozen", [{"model": with_finisher(), "finish": True}, {"freeze_encoder_from": 0}])
def test_what_stays_as_it_is_wants_a_beginning(frozen: dict[str, object], pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="goes on from a trained model, and there is none"):
        train(tiny_run(pictures, **frozen), tmp_path, device=CPU, report=lambda _: None)


def test_it_begins_as_the_denoiser_of_an_oscar(pictures: Path) -> None:
    def prepared(**changes: object) -> CoD:
        found = load_pictures(pictures, crop=64).pictures
        config = tiny_run(pictures, **changes)
        run = CoDRun(config, CPU)
        run.prepare(lambda: [np.asarray(picture) for picture in found])
        model: CoD = run.model
        return model

    large = with_finisher(finisher=DenoiserConfig(blocks=(2, 5)))
    begun, oscar = prepared(model=large, finisher_prior="oscar-s"), load_network("oscar-s", device=CPU)
    for name, value in oscar.denoiser.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(begun.finisher.state_dict()[name], value), name
    # From nothing, its filter has the pictures' spectrum.
    new = prepared(model=with_finisher())
    assert not torch.equal(new.finisher.filter.log_power, CoD(with_finisher()).finisher.filter.log_power)
    with pytest.raises(ConfigError, match=r"prior 'oscar-s' does not fit: .*widths"):
        prepared(model=with_finisher(), finisher_prior="oscar-s")
    with pytest.raises(ConfigError, match="prior 'cod-xs' is not a denoiser"):
        prepared(model=with_finisher(), finisher_prior="cod-xs")


def test_what_cannot_be_says_so(pictures: Path) -> None:
    with pytest.raises(ConfigError, match="a finisher is for pixel space, got 'sd-vae'"):
        latent = TransformerConfig(head="ddt", channels=4, patch=2, width=16, heads=2)
        CoDConfig(condition=tiny_config().condition, transformer=latent, space="sd-vae", finisher=FINISHER)
    for noise in (0.0, 1.0):
        with pytest.raises(ConfigError, match=f"finisher_noise must be between 0 and 1, got {noise}"):
            with_finisher(finisher_noise=noise)
    with pytest.raises(ConfigError, match=r"finish needs a model with a finisher; set model\.finisher"):
        tiny_run(pictures, finish=True)
    with pytest.raises(ConfigError, match="needs a crop of at least 32, got 16"):
        tiny_run(pictures, model=with_finisher(), finish=True, crop=16)
    with pytest.raises(ConfigError, match="no weight for sliced"):
        CoDRun(tiny_run(pictures, model=with_finisher(), finish=True, weights={"finished": 1.0}), CPU)
    coarse = replace(FINISHER, widths=(4, 8, 8, 8), blocks=(1, 1, 1, 1))
    assert with_finisher(finisher=coarse).grid == max(16, coarse.grid)
