"""Perceptual terms of OSCAR, with networks of random weights, and the published objective that has them."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from codling.errors import ConfigError
from codling.training.oscar_run import OscarRun
from codling.training.perceptual import PERCEPTUAL, edges, load_perceptual
from codling.training.recipes import OSCAR_RESTORE, oscar_weights, stages_of
from tests.tiny_oscar import image, tiny_oscar, tiny_run
from tests.training import CPU

dists = pytest.importorskip("torchmetrics.functional.image.dists")
lpips = pytest.importorskip("torchmetrics.functional.image.lpips")


def vgg16(*, weights: object) -> SimpleNamespace:
    """The layers of VGG-16's features, untrained."""
    layers: list[nn.Module] = []
    width = 3
    for wider in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()] if wider else [nn.MaxPool2d(2)]
        width = wider or width
    return SimpleNamespace(features=nn.Sequential(*layers))


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for torchvision."""
    torch.manual_seed(0)
    module, named = ModuleType("torchvision"), SimpleNamespace(DEFAULT="random")
    module.models = SimpleNamespace(vgg16=vgg16, VGG16_Weights=named)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", module)
    for library in (dists, lpips):
        monkeypatch.setattr(library, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(dists, "vgg16", vgg16, raising=False)
    monkeypatch.setattr(dists, "VGG16_Weights", named, raising=False)


def test_distances_are_zero_of_equal_pictures_and_grow(vision: None) -> None:
    distances = load_perceptual(PERCEPTUAL, device=CPU)
    assert tuple(distances) == PERCEPTUAL
    picture = torch.cat([image(48, 48, seed=seed) for seed in range(2)])
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    for name, distance in distances.items():
        near, far = (distance(picture + amount * noise, picture) for amount in (0.03, 0.3))
        assert distance(picture, picture).item() == pytest.approx(0, abs=1e-3), name
        assert far.ndim == 0 and far > near > 0, name


def test_their_gradient_reaches_the_denoiser_and_nothing_of_them_learns(pictures: Path, vision: None) -> None:
    for name in PERCEPTUAL:
        run = OscarRun(tiny_run(pictures, weights=dict.fromkeys(oscar_weights(), 0.0) | {name: 1.0}), CPU)
        run.model.load_state_dict(tiny_oscar().state_dict())
        loss, terms = run.loss(torch.cat([image(48, 48, seed=seed) for seed in range(4)]))
        assert set(PERCEPTUAL) & set(terms) == {name}
        assert loss.item() == pytest.approx(terms[name].item())
        loss.backward()
        assert float(run.model.denoiser.last.weight.grad.abs().max()) > 0, name
        assert len(run.optimiser.param_groups[0]["params"]) == len(
            [p for p in run.model.parameters() if p.requires_grad]
        )


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


@pytest.mark.parametrize("name", PERCEPTUAL)
def test_without_torchvision_the_error_says_what_to_install(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for library in (dists, lpips):
        monkeypatch.setattr(library, "_TORCHVISION_AVAILABLE", False)
    with pytest.raises(ConfigError, match=rf"weights.{name} need .* pip install 'codling\[eval\]' torchvision"):
        OscarRun(tiny_run(pictures, weights={**oscar_weights(), name: 1.0}), CPU)


def test_without_the_network_the_error_says_what_is_downloaded(
    pictures: Path, vision: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*, weights: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(dists, "vgg16", offline)
    with pytest.raises(ConfigError, match=r"VGG-16, which it downloads once.*no route to host.*Set them to 0"):
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
