"""A model on disk: a directory with `model.safetensors` (weights and integer tables) and `config.json`.

`config.json` records the SHA-256 of the weights file, so that a model is identified without reading its weights; the
hash is checked when they are read.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from codling.bitstream.indices import IndexModel
from codling.codecs.cod import CoDCodec
from codling.configuration import from_dict, to_dict
from codling.errors import ModelError
from codling.models.autoencoder import Autoencoder, StableDiffusionVAE
from codling.models.cod import CoD, CoDConfig
from codling.weights.catalogue import CONFIG, FORMAT, model_id, read_config
from codling.weights.packing import Precision, pack, unpack

WEIGHTS = "model.safetensors"
TABLES = ("index_model.groups", "index_model.weights")
CODEBOOK = "condition_codec.quantiser.embedding"


@dataclass(frozen=True)
class Manifest:
    """`config.json`: what a model is, without its weights.

    kind: the scheme, "cod" so far. autoencoder: directory or hub name of the autoencoder of latent models, else "".
    """

    format: int
    kind: str
    weights_sha256: str
    config: CoDConfig
    autoencoder: str = ""


def save_model(
    directory: Path,
    model: CoD,
    *,
    index_model: IndexModel | None = None,
    precision: Precision = "float32",
    autoencoder: str = "",
) -> Manifest:
    """Write a model directory; files appear under their final names only when complete."""
    stored = pack(model.state_dict(), precision, exact=frozenset({CODEBOOK}))
    if index_model is not None:
        tables = (torch.from_numpy(index_model.groups), torch.from_numpy(index_model.weights))
        stored |= dict(zip(TABLES, tables, strict=True))
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / (WEIGHTS + ".tmp")
    save_file(stored, temporary)
    temporary.chmod(0o644)  # safetensors writes for the owner alone, and models are shared
    manifest = Manifest(FORMAT, "cod", file_sha256(temporary), model.config, autoencoder)
    os.replace(temporary, directory / WEIGHTS)
    temporary = directory / (CONFIG + ".tmp")
    temporary.write_text(json.dumps(to_dict(manifest), indent=2) + "\n")
    os.replace(temporary, directory / CONFIG)
    return manifest


def load_model(directory: Path, *, name: str, device: torch.device) -> CoDCodec:
    """Read a model directory. Raises ModelError on missing, damaged or mismatched files."""
    values = read_config(directory)
    manifest = from_dict(Manifest, values, str(directory / CONFIG))
    path = directory / WEIGHTS
    if not path.exists():
        raise ModelError(f"{directory} is not a complete model: it has no {WEIGHTS}")
    if file_sha256(path) != manifest.weights_sha256:
        raise ModelError(f"{path} is not the file that {CONFIG} describes (SHA-256 differs); get the model again")
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    index_model = _index_model(stored)
    with torch.device("meta"):
        model = CoD(manifest.config)
    state = unpack({key: value for key, value in stored.items() if key not in TABLES})
    if set(state) != set(model.state_dict()):
        differing = sorted(set(state) ^ set(model.state_dict()))
        raise ModelError(f"{path} does not fit its configuration; first tensors that differ: {differing[:5]}")
    model.load_state_dict(state, assign=True)
    autoencoder: Autoencoder | None = None
    if manifest.config.space == "sd-vae":
        loaded = StableDiffusionVAE.load(manifest.autoencoder)
        autoencoder = loaded.to(device)
    return CoDCodec(
        model.to(device).requires_grad_(False),
        name=name,
        model_id=model_id(values),
        index_model=index_model,
        autoencoder=autoencoder,
    )


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _index_model(stored: Mapping[str, Tensor]) -> IndexModel | None:
    if TABLES[0] not in stored:
        return None
    return IndexModel(stored[TABLES[0]].numpy(), stored[TABLES[1]].numpy())
