"""Models ready to code: from a name, a directory, or the id that a stream carries."""

import os
from pathlib import Path

import torch

from codling.codecs.cod import CoDCodec
from codling.errors import ModelError
from codling.weights.catalogue import CONFIG, HUB, find, find_id, local_directory
from codling.weights.store import load_model, save_model

HUB_VARIABLE = "CODLING_HUB"


def load(name_or_directory: str | os.PathLike[str], *, device: torch.device) -> CoDCodec:
    """A model by its name, or by the path of its directory, on a device. A hub model is fetched on first use."""
    path = Path(name_or_directory)
    if (path / CONFIG).is_file():
        return load_model(path, name=path.resolve().name, device=device)
    entry = find(os.fspath(name_or_directory))
    return load_model(entry.directory or fetch(entry.name), name=entry.name, device=device)


def load_by_id(model_id: int, *, device: torch.device) -> CoDCodec:
    """The model that a stream names."""
    entry = find_id(model_id)
    assert entry.directory is not None
    return load_model(entry.directory, name=entry.name, device=device)


def fetch(name: str) -> Path:
    """Download a hub model, convert it and keep it among the local models; returns its directory."""
    from codling.weights.importers.cod import import_cod

    hub = HUB[name]
    model = import_cod(hub_file(hub.repository, hub.config), hub_file(hub.repository, hub.weights))
    directory = local_directory() / name
    save_model(directory, model, autoencoder=hub.autoencoder)
    return directory


def hub_file(repository: str, filename: str) -> Path:
    """A file of a hub repository: from the directory $CODLING_HUB laid out like the hub, else by huggingface_hub."""
    mirror = os.environ.get(HUB_VARIABLE)
    if mirror:
        path = Path(mirror) / repository / filename
        if path.is_file():
            return path
        raise ModelError(f"${HUB_VARIABLE} is set, but {path} does not exist; put {filename} of {repository} there")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"cannot fetch {filename} of {repository} ({type(error).__name__}). Without a network: download that file "
            f"elsewhere, put it at DIR/{repository}/{filename} and set {HUB_VARIABLE}=DIR"
        ) from error
