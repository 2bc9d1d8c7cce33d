"""Perceptual terms of OSCAR, with networks of random weights, and the published objective that has them."""

from pathlib import Path

import pytest
import torch

from codling.errors import ConfigError
from codling.perceptual import load_dists, load_lpips
from codling.training.oscar_run import OscarRun
from codling.training.perceptual import PERCEPTUAL, edges
from codling.training.recipes import OSCAR_RESTORE, oscar_weights, stages_of
from tests.tiny_oscar import image, tiny_oscar, tiny_run
from tests.training import CPU

pytest.importorskip("torchmetrics")


def test_their_gradient_reaches_the_denoiser_and_nothing_of_them_learns(
    pictures: Path, random_networks: object
) -> None:
    for name in PERCEPTUAL:
        run = OscarRun(tiny_run(pictures, weights=dict.fromkeys(oscar_weights(), 0.0) | {name: 1.0}), CPU)
        run.model.load_state_dict(tiny_oscar().state_dict())
        loss, terms = run.loss(torch.cat([image(48, 48, seed=seed) for seed in range(4)]))
        assert set(PERCEPTUAL) & set(terms) == {name}
        assert loss.item() == pytest.approx(terms[name].item())
        loss.backward()
        assert float(run.model.denoiser.last.weight.grad.abs().max()) > 0, name
    frozen = [
        p
        for network in (load_lpips("alex", CPU), load_lpips("vgg", CPU), load_dists(CPU))
        for p in network.parameters()
    ]
    assert frozen and not [p for p in frozen if p.requires_grad or p.grad is not None]


def test_edges_are_where_pictures_change() -> None:
    step = torch.full((1, 3, 8, 8), -1.0)
    step[..., 4:] = 1.0
    found = edges(step)
    assert torch.allclose(found[..., [0, 1, 6, 7]], torch.tensor(-1.0), atol=1e-3)
    # Sobel's sum of weights is 8 and the step 2 high, so the magnitude is 1 of at most sqrt 2.
    assert torch.allclose(found[..., 3:5], torch.tensor(2**0.5 - 1), atol=1e-3)
    assert torch.allclose(edges(step.transpose(2, 3)), found.transpose(2, 3))
    flat = torch.zeros(1, 3, 8, 8, requires_grad=True)
    edges(flat).sum().backward()
    assert flat.grad is not None and bool(flat.grad.isfinite().all())


def test_without_weights_a_run_says_what_is_missing(pictures: Path, no_networks: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights.dists cannot count: .*vgg16.*no route to host.*Set them to 0"):
        OscarRun(tiny_run(pictures, weights={**oscar_weights(), "dists": 1.0}), CPU)


def test_what_the_published_objective_sets() -> None:
    stages = stages_of("oscar-s-published")
    assert list(stages) == ["oscar-s-tokens", "oscar-s-restore-published"]
    published = stages["oscar-s-restore-published"]
    changed = {name for name, value in vars(published).items() if value != getattr(OSCAR_RESTORE, name)}
    assert changed == {"weights", "adversarial_gradient", "jump_share", "finish_share"}
    second = {name: weight for name, weight in published.weights.items() if name not in ("alignment", "commitment")}  # type: ignore[attr-defined]
    assert {name: weight for name, weight in second.items() if weight} == {
        "pixel": 1.0, "cosine": 2.0, "dists": 1.0, "dists_edges": 1.0, "adversarial": 0.005,
    }  # fmt: skip
    assert published.adversarial_gradient is False  # type: ignore[attr-defined]
    assert published.adversarial_from == 0  # type: ignore[attr-defined]
    assert published.jump_share == published.finish_share == 0 and published.level_shares == ()  # type: ignore[attr-defined]
