"""Small models and pictures for all tests. Randomly initialised networks obey every law that trained ones do."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from codling.bitstream.index_tables import fit_index_model
from codling.codecs.cod import CoDCodec
from codling.models.cod import CoD, CoDConfig
from codling.models.condition_codec import ConditionCodecConfig
from codling.models.dit import TransformerConfig
from codling.weights.registry import load_codec
from codling.weights.store import Parts, save_model
from tests.perceptual_networks import no_networks, random_networks, stored_networks  # noqa: F401

# Workers side by side take a thread each, instead of waiting for each other's.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"


def tiny_config(**changes: object) -> CoDConfig:
    """A CoD of a few ten thousand parameters; `changes` replace fields of the top level."""
    condition = ConditionCodecConfig(
        stride=16, codebook_size=12, codebook_width=4, encoder_width=8, decoder_width=16, decoder_blocks=3, groups=4
    )
    transformer = TransformerConfig(width=16, heads=2, blocks=1, head_blocks=1, head_width=4)
    settings = {"condition": condition, "transformer": transformer, "tile": 64, "overlap": 32, "steps": 2}
    return CoDConfig(**{**settings, "sigma_data": 0.5, **changes})


def tiny_model(config: CoDConfig | None = None, *, seed: int = 0) -> CoD:
    """Random weights, the output layer included (a fresh model's is zero), and a codebook that is used evenly."""
    torch.manual_seed(seed)
    model = CoD(config or tiny_config())
    if model.config.transformer is not None:
        torch.nn.init.normal_(model.transformer.head.out.weight, std=0.3)
    book = model.condition_codec.quantiser.embedding
    with torch.no_grad():
        features = model.condition_codec.encoder(torch.rand(4, 3, 64, 64) * 2 - 1)
        points = features.movedim(1, -1).flatten(0, 2)
        book.copy_(points[torch.randperm(len(points))[: len(book)]])
    return model.eval()


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model with index tables."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    rng = np.random.default_rng(0)
    maps = [np.clip(rng.poisson(3, (8, 8)), 0, 11) for _ in range(20)]
    save_model(directory, Parts(tiny_model(), index_model=fit_index_model(maps, 12)))
    return directory


@pytest.fixture(scope="session")
def tiny_codec(tiny_directory: Path) -> CoDCodec:
    codec = load_codec(tiny_directory, name="tiny", device=torch.device("cpu"))
    assert isinstance(codec, CoDCodec)
    return codec


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """The photographs of the demonstration."""
    found = sorted(PHOTOS.glob("*.webp"))
    assert found, f"no photographs in {PHOTOS}"
    return found


def noise_picture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A smooth random picture (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3)).repeat(16, 0).repeat(16, 1)
    return coarse[:height, :width].astype(np.uint8)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of small pictures to train on."""
    from tests.training import png, write_shard

    directory = tmp_path_factory.mktemp("pictures")
    for shard in range(2):
        names = {f"{shard}{i}.png": png(noise_picture(70 + i, 90, seed=10 * shard + i)) for i in range(6)}
        write_shard(directory / f"train-{shard}.tar", names)
    return directory
