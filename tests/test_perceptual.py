"""LPIPS and DISTS against torchmetrics' own, with networks of random weights; published values where weights are."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from codling.errors import ConfigError, ImageError, ModelError
from codling.evaluation.metrics import measure
from codling.perceptual import WEIGHTS, L2Pooling, Network, load_dists, load_lpips
from codling.training.perceptual import PERCEPTUAL, load_perceptual
from tests.conftest import noise_picture
from tests.perceptual_networks import NETWORKS, forget
from tests.training import CPU

their_dists = pytest.importorskip("torchmetrics.functional.image.dists")
their_lpips = pytest.importorskip("torchmetrics.functional.image.lpips")


def pair(batch: int = 2, height: int = 48, width: int = 41) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
    return first, (first + 0.3 * torch.randn(first.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize("network", NETWORKS)
def test_lpips_is_that_of_torchmetrics(
    random_networks: dict[Network, nn.Sequential], monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    def features(name: str, pretrained: bool) -> nn.Sequential:
        # Theirs has a last pooling that is not looked at.
        return nn.Sequential(*random_networks[network], nn.MaxPool2d(2))

    monkeypatch.setattr(their_lpips, "_get_tv_model_features", features)
    theirs = their_lpips._NoTrainLpips(net=network)
    first, second = pair()
    ours = load_lpips(network, CPU)(first, second)
    assert ours.shape == (2,) and float(ours.min()) > 1e-4
    assert torch.allclose(ours, theirs(first, second).flatten(), rtol=1e-4)


def test_dists_is_that_of_torchmetrics(
    random_networks: dict[Network, nn.Sequential], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(their_dists, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(
        their_dists, "vgg16", lambda weights: SimpleNamespace(features=random_networks["vgg"]), raising=False
    )
    monkeypatch.setattr(their_dists, "VGG16_Weights", SimpleNamespace(DEFAULT=None), raising=False)
    theirs = their_dists.DISTSNetwork()
    first, second = pair()
    ours = load_dists(CPU)(first, second)
    assert ours.shape == (2,) and float(ours.min()) > 1e-3
    assert torch.allclose(ours, theirs((first + 1) / 2, (second + 1) / 2).flatten(), rtol=1e-3)


@pytest.mark.parametrize("name", PERCEPTUAL)
def test_distances_are_zero_of_equal_pictures_grow_and_have_a_gradient(
    random_networks: dict[Network, nn.Sequential], name: str
) -> None:
    (distance,) = load_perceptual([name], device=CPU).values()
    picture, noise = pair()[0], torch.randn(2, 3, 48, 41, generator=torch.Generator().manual_seed(1))
    assert float(distance(picture, picture)) == pytest.approx(0, abs=1e-5)
    near, far = (distance(picture + amount * noise, picture) for amount in (0.03, 0.3))
    assert far.ndim == 0 and far > near > 0
    moved = (picture + 0.1 * noise).requires_grad_()
    distance(moved, picture).backward()
    assert moved.grad is not None and bool(moved.grad.isfinite().all()) and float(moved.grad.abs().max()) > 0


@pytest.mark.parametrize(("metric", "name"), [("lpips-alex", "lpips_alex"), ("dists", "dists")])
def test_what_was_measured_with_can_be_trained_with(random_networks: object, metric: str, name: str) -> None:
    """The same network, which is kept, in the same process."""
    one, other = (noise_picture(48, 48, seed=seed) for seed in range(2))
    assert isinstance(measure(one, other, (metric,))[metric], float)
    (distance,) = load_perceptual([name], device=CPU).values()
    first, second = pair()
    distance(first.requires_grad_(), second).backward()
    assert first.grad is not None and float(first.grad.abs().max()) > 0


def test_bfloat16_around_them_changes_nothing(random_networks: dict[Network, nn.Sequential]) -> None:
    first, second = pair()
    for network in (load_lpips("alex", CPU), load_dists(CPU)):
        expected = network(first, second)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network(first, second), expected)


def test_flat_pictures_have_a_gradient_too(random_networks: dict[Network, nn.Sequential]) -> None:
    for network in (load_lpips("alex", CPU), load_dists(CPU)):
        flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
        network(flat, torch.ones(1, 3, 32, 32)).sum().backward()
        assert flat.grad is not None and bool(flat.grad.isfinite().all())


def test_pooling_keeps_what_is_flat() -> None:
    flat = L2Pooling()(torch.full((1, 2, 12, 10), 3.0))
    assert flat.shape == (1, 2, 6, 5) and torch.allclose(flat[..., 1:, 1:], torch.tensor(3.0))


def test_metrics_say_what_is_missing(no_networks: Path) -> None:
    picture = np.zeros((40, 40, 3), np.uint8)
    for name in ("lpips-alex", "lpips-vgg", "dists"):
        message = measure(picture, picture, (name,))[name]
        assert isinstance(message, str)
        assert "no route to host" in message and f"put the file into {no_networks}/hub/checkpoints" in message


def test_training_says_what_is_missing(no_networks: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights.dists cannot count: .*vgg16.*no route.*Set them to 0"):
        load_perceptual(["dists"], device=CPU)


def test_only_what_cannot_be_had_is_missing(
    no_networks: Path, stored_networks: tuple[Path, dict[Network, nn.Sequential]]
) -> None:
    """And all of it, with the reason."""
    alex = Path("hub") / "checkpoints" / Path(WEIGHTS["alex"]).name
    (no_networks / alex).parent.mkdir(parents=True)
    shutil.copy(stored_networks[0] / alex, no_networks / alex)
    assert list(load_perceptual(["lpips_alex"], device=CPU)) == ["lpips_alex"]
    with pytest.raises(ConfigError, match=r"training: weights.lpips and weights.dists cannot count: .*vgg16.*no route"):
        load_perceptual(["dists", "lpips_alex", "lpips"], device=CPU)


@pytest.mark.parametrize("content", [b"", b"not weights", "other layers"])
def test_a_damaged_file_is_said(no_networks: Path, content: bytes | str) -> None:
    path = no_networks / "hub" / "checkpoints" / Path(WEIGHTS["alex"]).name
    path.parent.mkdir(parents=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(ModelError, match="alexnet"):
        load_lpips("alex", CPU)


def test_small_pictures_are_refused(random_networks: dict[Network, nn.Sequential]) -> None:
    with pytest.raises(ImageError, match="at least 32 px, got 40 x 31"):
        load_lpips("alex", CPU)(*pair(1, 31, 40))
    message = measure(*(np.zeros((31, 40, 3), np.uint8) for _ in range(2)), ("dists",))["dists"]
    assert isinstance(message, str) and "at least 32 px" in message
    assert float(load_lpips("alex", CPU)(*pair(1, 32, 32))) > 0


def test_published_values() -> None:
    """LPIPS with VGG-16 of ten pairs of noise, as the authors' package gives it; where the weights were downloaded."""
    forget()
    if not (Path(torch.hub.get_dir()) / "checkpoints" / Path(WEIGHTS["vgg"]).name).is_file():
        pytest.skip("the weights of VGG-16 were not downloaded")
    random = np.random.RandomState(123)
    first, second = (torch.tensor(random.rand(10, 3, 100, 100), dtype=torch.float32) * 2 - 1 for _ in range(2))
    published = [0.3497, 0.3494, 0.3473, 0.3558, 0.3437, 0.3366, 0.3716, 0.3516, 0.3472, 0.3413]
    with torch.inference_mode():
        assert load_lpips("vgg", CPU)(first, second).tolist() == pytest.approx(published, abs=6e-5)
