"""AlexNet and VGG-16 with random weights, where torch keeps what it downloads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from codling.perceptual import WEIGHTS, Network, load_dists, load_lpips, untrained

NETWORKS: tuple[Network, ...] = ("alex", "vgg")


def forget() -> None:
    """Distances that were loaded are loaded again."""
    for load in (load_lpips, load_dists):
        load.cache_clear()


@pytest.fixture(scope="session")
def stored_networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Network, nn.Sequential]]:
    """A home of torch's with both files, which classify, too; and the layers in them."""
    home = tmp_path_factory.mktemp("torch")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    networks = {network: untrained(network) for network in NETWORKS}
    for network, url in WEIGHTS.items():
        state = {f"features.{name}": value for name, value in networks[network].state_dict().items()}
        torch.save({**state, "classifier.6.bias": torch.zeros(1000)}, home / "hub" / "checkpoints" / Path(url).name)
    return home, networks


@pytest.fixture
def random_networks(
    stored_networks: tuple[Path, dict[Network, nn.Sequential]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[Network, nn.Sequential]]:
    """The networks' layers, which are what distances are loaded with."""
    monkeypatch.setenv("TORCH_HOME", str(stored_networks[0]))
    forget()
    yield stored_networks[1]
    forget()


@pytest.fixture
def no_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of torch's where nothing was downloaded, and nothing can be."""

    def offline(url: str, path: str, *_args: object, **_options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    forget()
    yield tmp_path
    forget()
