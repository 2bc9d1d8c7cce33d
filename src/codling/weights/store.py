"""A model on disk: a directory with `model.safetensors` (weights and integer tables) and `config.json`.

`config.json` records the SHA-256 of the weights file, so that a model is identified without reading its weights; the
hash is checked when they are read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from codling.bitstream.indices import IndexModel
from codling.codecs.diffc_stream import DiffCConfig
from codling.configuration import from_dict, to_dict
from codling.errors import ModelError
from codling.models.cod import CoD, CoDConfig
from codling.models.denoiser import Denoiser, DenoiserConfig
from codling.models.wiener import WienerConfig, WienerFilter
from codling.rcc.plan import ErrorTable
from codling.weights.catalogue import CONFIG, FORMAT, read_config
from codling.weights.packing import Precision, pack, unpack

WEIGHTS = "model.safetensors"
INDEX_TABLES = ("index_model.groups", "index_model.weights")
# Error tables of DiffC: `error_table.conditional.levels`, ... , of the conditional and the unconditional model.
ERROR_TABLE, ERROR_PARTS = "error_table", ("levels", "edges", "log_error")
CODEBOOK = "condition_codec.quantiser.embedding"

Model = CoD | Denoiser | WienerFilter
Config = CoDConfig | DenoiserConfig | WienerConfig
# Kinds of models: configuration and network.
KINDS: dict[str, tuple[type[Any], Callable[[Any], Model]]] = {
    "cod": (CoDConfig, CoD),
    "denoiser": (DenoiserConfig, Denoiser),
    "linear": (WienerConfig, WienerFilter),
}


@dataclass(frozen=True)
class Manifest:
    """`config.json`: what a model is, without its weights.

    kind: of `KINDS`. config: the network's. diffc: how DiffC streams of it are coded, or None if it was not calibrated.
    autoencoder: directory or hub name of the autoencoder of latent models, else "".
    """

    format: int
    kind: str
    weights_sha256: str
    config: Config = field(default_factory=CoDConfig)
    autoencoder: str = ""
    diffc: DiffCConfig | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str) -> "Manifest":
        """From the parsed document. Raises ModelError on an unknown kind, ConfigError on unknown settings."""
        kind = values.get("kind")
        if kind not in KINDS:
            raise ModelError(f"{where}: unknown kind of model {kind!r}, wanted one of {', '.join(KINDS)}")
        config = from_dict(KINDS[kind][0], values.get("config", {}), f"{where}.config")
        rest = from_dict(cls, {key: value for key, value in values.items() if key != "config"}, where)
        return replace(rest, config=config)


@dataclass(frozen=True)
class Parts:
    """A model as its directory holds it. error_tables: by whether the model has its condition."""

    model: Model
    index_model: IndexModel | None = None
    error_tables: Mapping[bool, ErrorTable] = field(default_factory=dict)
    diffc: DiffCConfig | None = None
    autoencoder: str = ""


def save_model(directory: Path, parts: Parts, *, precision: Precision = "float32") -> Manifest:
    """Write a model directory; files appear under their final names only when complete."""
    stored = pack(parts.model.state_dict(), precision, exact=frozenset({CODEBOOK}))
    if parts.index_model is not None:
        tables = (torch.from_numpy(parts.index_model.groups), torch.from_numpy(parts.index_model.weights))
        stored |= dict(zip(INDEX_TABLES, tables, strict=True))
    for conditional, table in parts.error_tables.items():
        for part in ERROR_PARTS:
            numbers = torch.from_numpy(np.ascontiguousarray(getattr(table, part)))
            stored[f"{_table_name(conditional)}.{part}"] = numbers
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / (WEIGHTS + ".tmp")
    save_file(stored, temporary)
    temporary.chmod(0o644)  # safetensors writes for the owner alone, and models are shared
    kind = next(name for name, (_, network) in KINDS.items() if type(parts.model) is network)
    manifest = Manifest(FORMAT, kind, file_sha256(temporary), parts.model.config, parts.autoencoder, parts.diffc)
    os.replace(temporary, directory / WEIGHTS)
    temporary = directory / (CONFIG + ".tmp")
    temporary.write_text(json.dumps(to_dict(manifest), indent=2) + "\n")
    os.replace(temporary, directory / CONFIG)
    return manifest


def load_parts(directory: Path, *, device: torch.device) -> Parts:
    """Read a model directory. Raises ModelError on missing, damaged or mismatched files."""
    manifest = Manifest.read(read_config(directory), str(directory / CONFIG))
    path = directory / WEIGHTS
    if not path.exists():
        raise ModelError(f"{directory} is not a complete model: it has no {WEIGHTS}")
    if file_sha256(path) != manifest.weights_sha256:
        raise ModelError(f"{path} is not the file that {CONFIG} describes (SHA-256 differs); get the model again")
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    with torch.device("meta"):
        model = KINDS[manifest.kind][1](manifest.config)
    weights = {k: v for k, v in stored.items() if k not in INDEX_TABLES and not k.startswith(ERROR_TABLE)}
    state = unpack(weights)
    if set(state) != set(model.state_dict()):
        differing = sorted(set(state) ^ set(model.state_dict()))
        raise ModelError(f"{path} does not fit its configuration; first tensors that differ: {differing[:5]}")
    model.load_state_dict(state, assign=True)
    return Parts(
        model.to(device).requires_grad_(False),
        _index_model(stored),
        {conditional: table for conditional in (True, False) if (table := _error_table(stored, conditional))},
        manifest.diffc,
        manifest.autoencoder,
    )


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _index_model(stored: Mapping[str, Tensor]) -> IndexModel | None:
    if INDEX_TABLES[0] not in stored:
        return None
    groups, weights = (stored[name].numpy() for name in INDEX_TABLES)
    return IndexModel(groups, weights)


def _table_name(conditional: bool) -> str:
    return f"{ERROR_TABLE}.{'conditional' if conditional else 'unconditional'}"


def _error_table(stored: Mapping[str, Tensor], conditional: bool) -> ErrorTable | None:
    name = _table_name(conditional)
    if f"{name}.{ERROR_PARTS[0]}" not in stored:
        return None
    levels, edges, log_error = (stored[f"{name}.{part}"].numpy() for part in ERROR_PARTS)
    return ErrorTable(levels, edges, log_error)
