"""What later stages of a chain load is looked for before the first one trains."""

from pathlib import Path

import pytest
import torch

from codling.errors import ConfigError, ModelError
from codling.perceptual import load_lpips
from codling.training.chain import check_beginnings, train_stages
from codling.training.recipes import oscar_weights
from tests.conftest import tiny_config
from tests.tiny_oscar import CPU, tiny_run
from tests.training import tiny_run as tiny_cod_run


def silent(_: str) -> None:
    pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {**oscar_weights(), "dists": 1.0}}, "weights.dists cannot count"),
        ({"weights": {**oscar_weights(), "distribution": 1.0}, "distribution_base": "linear"}, "distribution_base"),
        ({"weights": {**oscar_weights(), "sampled": 1.0}, "sampled_from": "cod-xs"}, "sampled_from 'cod-xs'"),
        ({"finish_share": 0.5, "finish_as": ("nothing",)}, "unknown model 'nothing'"),
        ({"jump_as": "diffc-xs"}, "jump_as wants"),
    ],
)
def test_what_a_later_stage_lacks_ends_the_run_before_it_has_begun(
    pictures: Path, tmp_path: Path, no_networks: Path, changes: dict[str, object], message: str
) -> None:
    stages = {"first": tiny_run(pictures, restore_from=None), "second": tiny_run(pictures, **changes)}
    with pytest.raises((ConfigError, ModelError), match=message):
        train_stages(stages, tmp_path / "run", device=CPU, report=silent)
    assert not (tmp_path / "run").exists()


def test_a_stage_that_has_begun_asks_nothing_of_those_before(pictures: Path, tmp_path: Path) -> None:
    stages = {"first": tiny_run(pictures, steps=1, restore_from=None), "second": tiny_run(pictures, steps=2)}
    train_stages(stages, tmp_path, device=CPU, report=silent)
    stages["first"] = tiny_run(pictures, steps=1, restore_from=None, jump_as="nothing")
    assert train_stages(stages, tmp_path, device=CPU, report=silent).step == 2


def test_looking_holds_no_weights(pictures: Path, random_networks: object) -> None:
    """Not even the networks of perceptual distances, which are kept."""
    pytest.importorskip("torchmetrics")
    weights = {**oscar_weights(), "lpips_alex": 1.0, "sampled": 1.0, "distribution": 1.0}
    finisher = tiny_config(finisher=tiny_run(pictures).model.denoiser)
    check_beginnings([
        tiny_run(pictures, weights=weights, jump_share=0.3, finish_share=0.3),
        tiny_cod_run(pictures, model=finisher, finish=True),
    ])  # fmt: skip
    assert load_lpips.cache_info().currsize == 1
    assert all(p.is_meta for p in load_lpips("alex", torch.device("meta")).parameters())
    assert load_lpips.cache_info().currsize == 1
