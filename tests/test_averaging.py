"""The mean of models' weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codling.errors import ConfigError
from codling.weights.averaging import average
from codling.weights.store import Parts, load_parts, save_model
from tests.conftest import tiny_config, tiny_model
from tests.test_splitting import run
from tests.training import CPU


@pytest.fixture
def models(tmp_path: Path, tiny_directory: Path) -> list[Path]:
    """The tiny model and two others, which have its codebook, frozen."""
    first = load_parts(tiny_directory, device=CPU)
    found = [tiny_directory]
    for seed in (1, 2):
        model = tiny_model(seed=seed)
        model.condition_codec.quantiser.embedding.data.copy_(first.model.condition_codec.quantiser.embedding)  # type: ignore[union-attr]
        found.append(tmp_path / str(seed))
        save_model(found[-1], Parts(model))
    return found


def states(models: list[Path]) -> list[dict[str, torch.Tensor]]:
    return [dict(load_parts(model, device=CPU).model.state_dict()) for model in models]


def test_each_counts_by_its_share_and_what_is_the_same_stays(models: list[Path]) -> None:
    parts, (a, b, c) = average(models, (2.0, 1.0, 1.0)), states(models)
    for name, found in parts.model.state_dict().items():
        assert torch.allclose(found, a[name] / 2 + b[name] / 4 + c[name] / 4, atol=1e-6)
        if torch.equal(a[name], b[name]) and torch.equal(b[name], c[name]):
            assert torch.equal(found, a[name])
    assert torch.equal(
        parts.model.state_dict()["condition_codec.quantiser.embedding"], a["condition_codec.quantiser.embedding"]
    )
    assert not torch.equal(parts.model.state_dict()["transformer.head.out.weight"], a["transformer.head.out.weight"])
    # The first lends its tables.
    assert parts.index_model is not None


def test_the_mean_of_a_model_with_itself_is_the_model(models: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "mean"
    said = run(
        "weights", "average", models[1], models[1], "-o", output, "--shares", "0.3,0.6", "--precision", "float32"
    )
    assert str(output) in said
    mean, model = states([output, models[1]])
    assert all(torch.equal(mean[name], value) for name, value in model.items())


def test_what_has_no_mean_says_so(models: list[Path], tmp_path: Path) -> None:
    for chosen, shares in ((models[:1], ()), (models, (1.0,)), (models, (1.0, 0.0, 1.0))):
        with pytest.raises(ConfigError, match=f"got {len(chosen)} models and shares"):
            average(chosen, shares)
    other = tmp_path / "other"
    save_model(other, Parts(tiny_model(replace(tiny_config(), steps=7))))
    with pytest.raises(ConfigError, match="other has another configuration"):
        average([models[0], other])
    with pytest.raises(ConfigError, match="wants numbers with commas"):
        run("weights", "average", *models, "-o", tmp_path / "mean", "--shares", "half,half")
    with pytest.raises(ConfigError, match="not empty"):
        run("weights", "average", *models, "-o", other)
