"""A model's directory cut into parts of bounded size, for stores that take no large files, and put together again.

    model.safetensors  <->  model.safetensors.000, model.safetensors.001, ..., parts.json
    config.json             config.json

`parts.json` has the SHA-256 of every part; that of the whole is in `config.json`.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from codling.errors import ModelError
from codling.weights.catalogue import CONFIG, read_config
from codling.weights.store import WEIGHTS, file_sha256

PARTS = "parts.json"
MEBIBYTE = 1 << 20
DEFAULT_LIMIT = 15 * MEBIBYTE


def split(directory: Path, output: Path, *, limit: int = DEFAULT_LIMIT) -> list[Path]:
    """Cut a model into parts of at most `limit` bytes in another directory; returns the parts.

    Raises ModelError if the model is incomplete or damaged, or `output` is not empty.
    """
    if limit < 1:
        raise ModelError(f"parts need at least 1 byte, got a limit of {limit}")
    wanted = _weights_sha256(directory)
    if not (directory / WEIGHTS).is_file() or file_sha256(directory / WEIGHTS) != wanted:
        raise ModelError(f"{directory / WEIGHTS} is not the file that {CONFIG} describes; get the model again")
    _make_empty(output)
    hashes: dict[str, str] = {}
    with (directory / WEIGHTS).open("rb") as file:
        while data := file.read(limit):
            name = f"{WEIGHTS}.{len(hashes):03d}"
            (output / name).write_bytes(data)
            hashes[name] = hashlib.sha256(data).hexdigest()
    (output / PARTS).write_text(json.dumps(hashes, indent=2) + "\n")
    shutil.copyfile(directory / CONFIG, output / CONFIG)
    return [output / name for name in hashes]


def join(parts: Path, output: Path) -> None:
    """Put parts together into a model's directory. Raises ModelError on a part that is missing or damaged."""
    try:
        hashes = json.loads((parts / PARTS).read_text())
    except FileNotFoundError:
        raise ModelError(f"{parts} holds no parts of a model: it has no {PARTS}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{parts / PARTS} is not JSON: {error}") from error
    if not isinstance(hashes, dict) or not all(isinstance(sha256, str) for sha256 in hashes.values()):
        raise ModelError(f"{parts / PARTS} is not a table of parts and their SHA-256; get it again")
    wanted = _weights_sha256(parts)
    for name, sha256 in hashes.items():
        if not (parts / name).is_file():
            raise ModelError(f"{parts} lacks {name}; get it again")
        if file_sha256(parts / name) != sha256:
            raise ModelError(f"{parts / name} is damaged (SHA-256 differs); get it again")
    _make_empty(output)
    temporary = output / (WEIGHTS + ".tmp")
    with temporary.open("wb") as file:
        for name in hashes:
            file.write((parts / name).read_bytes())
    if file_sha256(temporary) != wanted:
        temporary.unlink()
        raise ModelError(f"the parts in {parts} are not those of the model that {CONFIG} describes; get them again")
    os.replace(temporary, output / WEIGHTS)
    shutil.copyfile(parts / CONFIG, output / CONFIG)


def _weights_sha256(directory: Path) -> str:
    """Of the whole weights, as a model's configuration has it."""
    sha256 = read_config(directory).get("weights_sha256")
    if not isinstance(sha256, str):
        raise ModelError(f"{directory / CONFIG} lacks the SHA-256 of the weights; get it again")
    return sha256


def _make_empty(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise ModelError(f"{directory} is not empty; name another directory, or empty it")
