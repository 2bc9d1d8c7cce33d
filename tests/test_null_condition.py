"""What stands for "nothing known": as published the condition of a black picture, or a vector that is learned."""

from pathlib import Path

import pytest
import torch

from codling.errors import ConfigError
from codling.models.cod import CoD
from codling.training.augment import Augmentation, augmented
from codling.training.cod_run import CoDRun
from codling.training.terms import Draws, Objective, cod_step
from codling.weights.registry import load_codec
from codling.weights.store import Parts, save_model
from tests.conftest import noise_picture, tiny_config, tiny_model
from tests.training import CPU, tiny_run

LEARNED = tiny_config(null="learned")


def image(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def learned() -> CoD:
    model = tiny_model(LEARNED)
    torch.nn.init.normal_(model.null)
    return model


@pytest.mark.parametrize(("height", "width"), [(16, 48), (64, 32)])
def test_only_as_published_is_a_black_picture_nothing_known(height: int, width: int) -> None:
    for model, same in ((tiny_model(), True), (learned(), False)):
        codec = model.condition_codec
        black = codec.decode(codec.encode(torch.full((1, 3, height, width), -1.0)))
        null = model.null_condition(height=height, width=width)
        assert null.shape == black.shape
        assert torch.allclose(null, black) == same


def test_who_loses_the_condition_gets_the_learned_one_and_teaches_it() -> None:
    picture, model = image(2, 3, 32, 32), learned()
    heads = CoDRun(tiny_run(Path(), model=LEARNED), CPU).head
    draws = Draws.make(picture, range(2), batch=2, null_condition=1.0, one_step_share=0.0, seed=0, step=0)
    wanted = model.condition_codec.encode(picture)
    result = cod_step(model, heads, picture, picture, draws, Objective())
    # The picture is coded as ever; only who denoises does not see it.
    assert torch.equal(result.indices, wanted)
    result.terms["flow"].backward()
    assert model.null.grad is not None and bool(model.null.grad.any())
    assert (
        model.condition_codec.quantiser.embedding.grad is None
        or not model.condition_codec.quantiser.embedding.grad.any()
    )
    other = cod_step(model, heads, picture, picture.flip(-1), draws, Objective())
    again = cod_step(model, heads, picture.flip(-2), picture.flip(-1), draws, Objective())
    assert torch.equal(other.terms["flow"], again.terms["flow"])


def test_it_is_saved_with_the_model(tmp_path: Path) -> None:
    model = learned()
    save_model(tmp_path / "m", Parts(model))
    loaded = load_codec(tmp_path / "m", name="m", device=CPU)
    assert torch.equal(loaded.model.null, model.null)


def test_other_nothings_are_refused() -> None:
    with pytest.raises(ConfigError, match='null must be "black" or "learned", got \'white\''):
        tiny_config(null="white")


def test_some_squares_are_dark(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    rngs = [np.random.default_rng(number) for number in range(400)]
    drawn = [Augmentation.draw(height=64, width=64, crop=32, scales=(1, 1), rng=rng) for rng in rngs]
    dark = [max(each.gain) for each in drawn if max(each.gain) < 0.68]
    assert 0.03 < len(dark) / len(drawn) < 0.09 and min(dark) < 0.1
    monkeypatch.setattr("codling.training.augment.DARKENED", 1.0)
    rng, picture = np.random.default_rng(3), noise_picture(64, 64)
    square = augmented([picture], [rng], crop=64, scales=(1, 1), device=CPU)
    assert square.min() >= -1 and square.mean() < picture.mean() / 127.5 - 1
