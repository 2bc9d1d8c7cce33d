"""A model on disk: a directory with `model.safetensors` (weights and integer tables) and `config.json`.

`config.json` records the SHA-256 of the weights file, so that a model is identified without reading its weights; the
hash is checked when they are read.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from codling.bitstream.context_network import ContextNetwork
from codling.bitstream.indices import IndexModel, IndexPredictor
from codling.codecs.activity_map import CLASSES, Tables
from codling.codecs.diffc_stream import DiffCConfig
from codling.configuration import from_dict, to_dict
from codling.errors import ModelError
from codling.models.cod import CoD, CoDConfig
from codling.models.denoiser import Denoiser, DenoiserConfig
from codling.models.oscar import Oscar, OscarConfig
from codling.models.oscar_stable_diffusion import OscarStableDiffusion, OscarStableDiffusionConfig
from codling.models.stable_diffusion import StableDiffusion, StableDiffusionConfig
from codling.models.wiener import WienerConfig, WienerFilter
from codling.nn.uninitialised import uninitialised
from codling.rcc.plan import ErrorTable
from codling.weights.catalogue import CONFIG, FORMAT, WEIGHTS, Precision, read_config
from codling.weights.directories import file_sha256, whole_directory
from codling.weights.packing import pack, unpack

# What codes the indices: of tables `index_model.groups` and `.weights`, of a network `index_model.looks` and so on; of
# models with levels `index_model.3.groups` and so on.
INDEX_MODEL = "index_model"
# Error tables of DiffC: `error_table.conditional.levels`, ... , of the conditional and the unconditional model.
ERROR_TABLE, ERROR_PARTS = "error_table", ("levels", "edges", "log_error")
# Beside them, of models with activity maps: errors by class, and the tables of the maps.
LOCAL_ERROR, MAP_MODEL = "local_log_error", "maps"
# Codebooks decide indices, so they are stored exactly.
CODEBOOKS = (".embedding", ".codebook")

Model = CoD | Denoiser | WienerFilter | Oscar | OscarStableDiffusion | StableDiffusion
Config = CoDConfig | DenoiserConfig | WienerConfig | OscarConfig | OscarStableDiffusionConfig | StableDiffusionConfig
# Kinds of models: configuration and network.
KINDS: dict[str, tuple[type[Any], Callable[[Any], Model]]] = {
    "cod": (CoDConfig, CoD),
    "denoiser": (DenoiserConfig, Denoiser),
    "linear": (WienerConfig, WienerFilter),
    "oscar": (OscarConfig, Oscar),
    "oscar-stable-diffusion": (OscarStableDiffusionConfig, OscarStableDiffusion),
    "stable-diffusion": (StableDiffusionConfig, StableDiffusion),
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
    """A model as its directory holds it.

    index_model: tables or network that code the indices of a model with one rate. index_models: of one with levels, for
        each of them, or empty.
    error_tables: by whether the model has its condition.
    """

    model: Model
    index_model: IndexPredictor | None = None
    index_models: tuple[IndexPredictor, ...] = ()
    error_tables: Mapping[bool, Tables] = field(default_factory=dict)
    diffc: DiffCConfig | None = None
    autoencoder: str = ""


def save_model(directory: Path, parts: Parts, *, precision: Precision = "float32") -> Manifest:
    """Write a model directory, as `whole_directory` does. Many processes may write the same model at once."""
    stored = stored_weights(parts.model.state_dict(), precision)
    if parts.index_model is not None:
        stored |= _index_tensors(INDEX_MODEL, parts.index_model)
    for level, index_model in enumerate(parts.index_models):
        stored |= _index_tensors(f"{INDEX_MODEL}.{level}", index_model)
    for conditional, tables in parts.error_tables.items():
        stored |= _error_tensors(_table_name(conditional), tables)
    kind = next(name for name, (_, network) in KINDS.items() if type(parts.model) is network)
    with whole_directory(directory) as new:
        weights = new / WEIGHTS
        save_file(stored, weights)
        weights.chmod(0o644)  # safetensors writes for the owner alone, and models are shared
        manifest = Manifest(FORMAT, kind, file_sha256(weights), parts.model.config, parts.autoencoder, parts.diffc)
        (new / CONFIG).write_text(json.dumps(to_dict(manifest), indent=2) + "\n")
    return manifest


def stored_weights(state: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """State dict -> tensors to store, codebooks exactly."""
    return pack(state, precision, exact=frozenset(name for name in state if name.endswith(CODEBOOKS)))


def round_weights(model: Model, precision: Precision) -> None:
    """Give a model the weights that its directory will hold: tables must describe what those compute."""
    model.load_state_dict(unpack(stored_weights(model.state_dict(), precision)))


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
    with uninitialised():
        model = KINDS[manifest.kind][1](manifest.config)
    tables = (f"{INDEX_MODEL}.", f"{ERROR_TABLE}.")
    state = unpack({name: value for name, value in stored.items() if not name.startswith(tables)})
    if set(state) != set(model.state_dict()):
        differing = sorted(set(state) ^ set(model.state_dict()))
        raise ModelError(f"{path} does not fit its configuration; first tensors that differ: {differing[:5]}")
    if misshapen := [name for name, value in model.state_dict().items() if value.shape != state[name].shape]:
        raise ModelError(f"{path} does not fit its configuration; first tensors of another shape: {misshapen[:5]}")
    model.load_state_dict(state, assign=True)
    return Parts(
        model.to(device).requires_grad_(False),
        _index_model(stored, INDEX_MODEL),
        _index_models(stored),
        {conditional: table for conditional in (True, False) if (table := _error_tables(stored, conditional))},
        manifest.diffc,
        manifest.autoencoder,
    )


def _index_tensors(prefix: str, index_model: IndexPredictor) -> dict[str, Tensor]:
    return {f"{prefix}.{part.name}": torch.from_numpy(getattr(index_model, part.name)) for part in fields(index_model)}


def _index_model(stored: Mapping[str, Tensor], prefix: str) -> IndexPredictor | None:
    kinds: tuple[type[IndexPredictor], ...] = (IndexModel, ContextNetwork)
    for kind in kinds:
        names = [part.name for part in fields(kind)]
        if f"{prefix}.{names[0]}" in stored:
            try:
                return kind(*(stored[f"{prefix}.{name}"].numpy() for name in names))
            except (KeyError, ValueError) as error:
                raise ModelError(f"the tables {prefix} of the model are damaged ({error}); get it again") from error
    return None


def _index_models(stored: Mapping[str, Tensor]) -> tuple[IndexPredictor, ...]:
    models: list[IndexPredictor] = []
    while (found := _index_model(stored, f"{INDEX_MODEL}.{len(models)}")) is not None:
        models.append(found)
    return tuple(models)


def _table_name(conditional: bool) -> str:
    return f"{ERROR_TABLE}.{'conditional' if conditional else 'unconditional'}"


def _error_tensors(name: str, tables: Tables) -> dict[str, Tensor]:
    arrays = {part: getattr(tables.whole, part) for part in ERROR_PARTS}
    if tables.local is not None:
        arrays[LOCAL_ERROR] = tables.local.log_error
    out = {f"{name}.{part}": torch.from_numpy(np.ascontiguousarray(array)) for part, array in arrays.items()}
    return out if tables.maps is None else out | _index_tensors(f"{name}.{MAP_MODEL}", tables.maps)


def _error_tables(stored: Mapping[str, Tensor], conditional: bool) -> Tables | None:
    name = _table_name(conditional)
    if f"{name}.{ERROR_PARTS[0]}" not in stored:
        return None
    try:
        levels, edges, log_error = (stored[f"{name}.{part}"].numpy() for part in ERROR_PARTS)
        whole = ErrorTable(levels, edges, log_error)
        by_class = stored.get(f"{name}.{LOCAL_ERROR}")
        local = None if by_class is None else replace(whole, log_error=by_class.numpy(), classes=CLASSES)
        maps = _index_model(stored, f"{name}.{MAP_MODEL}")
        if maps is not None and not isinstance(maps, IndexModel):
            raise ValueError("activity maps are coded by tables")
        return Tables(whole, local, maps)
    except (KeyError, ValueError) as error:
        raise ModelError(f"the tables {name} of the model are damaged ({error}); get it again") from error
