"""The published OSCAR on a Stable Diffusion of small size: as its authors wrote it, as ours, and as a directory."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codling.bitstream.indices import IndexModel
from codling.models.oscar_stable_diffusion import OscarStableDiffusion
from codling.weights.importers import oscar as importer
from codling.weights.importers.stable_diffusion import Pipeline
from codling.weights.store import Parts, save_model
from tests.golden.oscar_parts import golden_oscar, published_checkpoint, write_stable_diffusion

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "oscar.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub") / "stable-diffusion"
    write_stable_diffusion(golden_oscar(), directory)
    return directory


@pytest.fixture(scope="session")
def loaded(stable_diffusion: Path) -> Pipeline:
    return importer.load_stable_diffusion(str(stable_diffusion))


@pytest.fixture
def base(loaded: Pipeline) -> Pipeline:
    """To be given adapters: a copy for each test."""
    return copy.deepcopy(loaded)


@pytest.fixture(scope="session")
def checkpoint() -> dict[str, Any]:
    return published_checkpoint(golden_oscar())


@pytest.fixture(scope="session")
def merged(stable_diffusion: Path, checkpoint: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("published") / "oscar.pkl"
    torch.save(checkpoint, path)
    return importer.import_oscar(path, str(stable_diffusion))


@pytest.fixture(scope="session")
def directory(merged: OscarStableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "published"
    save_model(path, Parts(merged, index_models=tables(merged)))
    return path


def tables(model: OscarStableDiffusion) -> tuple[IndexModel, ...]:
    """Tables that tell the levels apart: all indices alike but the level's own number."""
    sizes = [level.codebook_size for level in model.levels]
    weights = [np.where(np.arange(size) == n, 900, 100)[None].repeat(4, 0) for n, size in enumerate(sizes)]
    return tuple(
        IndexModel(np.zeros(size, np.uint8), weight.astype(np.uint16))
        for size, weight in zip(sizes, weights, strict=True)
    )


def agrees(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    if theirs.dtype.kind == "i":
        return np.array_equal(ours.numpy().reshape(theirs.shape), theirs)
    return float(np.abs(ours.numpy() - theirs).max()) <= 1e-4 * max(1.0, float(np.abs(theirs).max()))
