"""Which models there are: embedded in the package, on this machine, or on the hub. Needs no torch."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from codling.configuration import suggest
from codling.errors import ModelError

# How weights are stored, see `packing`.
Precision = Literal["float32", "float16", "int8"]
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Where in a run's directory training leaves the model.
RUN_MODEL = "model"
FORMAT = 1
# What `encode` takes when it is told no model: without a rate, with one, and with a level of OSCAR's table.
DEFAULT_MODEL = "cod-xs"
RATE_MODEL = "diffc-xs"
LEVEL_MODEL = "oscar-s"
MODELS_VARIABLE = "CODLING_MODELS"


@dataclass(frozen=True)
class HubModel:
    """A published checkpoint: repository and the two files in it."""

    repository: str
    config: str
    weights: str
    autoencoder: str = ""


HUB = {
    "cod-pixel": HubModel("jzyustc/CoD", "cod/CoD_pixel_vpred.yaml", "cod/CoD_pixel_vpred.pt"),
    "cod-latent": HubModel(
        "jzyustc/CoD", "cod/CoD_latent_vpred.yaml", "cod/CoD_latent_vpred.pt", "stabilityai/sd-vae-ft-ema"
    ),
    "cod-latent-64bit": HubModel(
        "jzyustc/CoD", "cod/CoD_latent_vpred_64bits.yaml", "cod/CoD_latent_vpred_64bits.pt", "stabilityai/sd-vae-ft-ema"
    ),
}


@dataclass(frozen=True)
class Entry:
    """A row of the list of models. `directory` is None for a hub model that is not here.

    values: its `config.json`, None where that cannot be read. fault: then why it cannot, else "".
    """

    name: str
    source: str
    directory: Path | None = None
    values: Mapping[str, Any] | None = None
    fault: str = ""

    @property
    def model_id(self) -> int | None:
        return model_id(self.values) if self.values is not None else None


def model_id(values: Mapping[str, Any]) -> int:
    """The 24 bits that streams carry: the head of the SHA-256 of `config.json` in canonical form.

    Canonical means keys sorted, no spaces, ASCII. The document holds the SHA-256 of the weights file, so the id stands
    for both.
    """
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:3], "big")


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed `config.json` of a model directory.

    Raises ModelError if there is none, it cannot be read or it is of a later format.
    """
    path = directory / CONFIG
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{directory} is not a model: it has no {CONFIG}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({error}); get the model again") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise ModelError(f"{path} has format {found}, this program reads format {FORMAT}: update codling")
    document: dict[str, Any] = values
    return document


def embedded_directory() -> Path:
    """Where the models of the package lie."""
    return Path(str(resources.files("codling.weights").joinpath("embedded")))


def local_directory() -> Path:
    """Where imported and fetched models lie: $CODLING_MODELS, or `~/.cache/codling/models`."""
    chosen = os.environ.get(MODELS_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "codling" / "models"


def entries() -> Iterator[Entry]:
    """All models known here: embedded, local, then those of the hub that are not local yet.

    One that cannot be read costs only itself: it is among them, with its fault.
    """
    seen = set()
    for source, parent in (("embedded", embedded_directory()), ("local", local_directory())):
        for directory in sorted(parent.iterdir()) if parent.is_dir() else ():
            if os.path.lexists(directory / CONFIG) and directory.name not in seen:
                seen.add(directory.name)
                yield _entry(source, directory)
    for name in sorted(set(HUB) - seen):
        yield Entry(name, "hub")


def _entry(source: str, directory: Path) -> Entry:
    try:
        return Entry(directory.name, source, directory, read_config(directory))
    except ModelError as error:
        return Entry(directory.name, source, directory, fault=str(error))


def find(name: str) -> Entry:
    """The model of that name. Raises ModelError naming the nearest ones, or why that one cannot be read."""
    known = {entry.name: entry for entry in entries()}
    if name not in known:
        raise ModelError(f"unknown model {name!r}{suggest(name, known)} (or give the path of a model's directory)")
    if known[name].fault:
        raise ModelError(f"model {name!r} cannot be used: {known[name].fault}")
    return known[name]


def find_id(wanted: int) -> Entry:
    """The model that a stream names. Raises ModelError with the wanted id and the ids there are."""
    here = [entry for entry in entries() if entry.directory]
    for entry in here:
        if entry.model_id == wanted:
            return entry
    have = ", ".join(f"{e.name} {'unreadable' if e.model_id is None else f'{e.model_id:06x}'}" for e in here)
    raise ModelError(
        f"the stream was made with model {wanted:06x}, which is not here (here are: {have or 'none'}). Get that model "
        f"and put its directory into {local_directory()}, or name its directory as the model"
    )
