"""A model's directory cut into parts of bounded size, for stores that take no large files, and put together again.

    model.safetensors  <->  model.safetensors.000, model.safetensors.001, ..., parts.json
    config.json             config.json

`parts.json` has the SHA-256 of every part; that of the whole is in `config.json`.
"""

import hashlib
import json
import shutil
from pathlib import Path

from codling.errors import ModelError
from codling.weights.catalogue import CONFIG, WEIGHTS, read_config
from codling.weights.directories import check_empty, file_sha256, whole_directory

PARTS = "parts.json"
MEBIBYTE = 1 << 20
DEFAULT_LIMIT = 15 * MEBIBYTE


def split(directory: Path, output: Path, *, limit: int = DEFAULT_LIMIT) -> list[Path]:
    """Cut a model into parts of at most `limit` bytes in another directory; returns the parts.

    They are written as by `whole_directory`. Raises ModelError if the model is incomplete or damaged, ConfigError if
    `output` is not empty.
    """
    if limit < 1:
        raise ModelError(f"parts need at least 1 byte, got a limit of {limit}")
    check_empty(output)
    wanted = _weights_sha256(directory)
    if not (directory / WEIGHTS).is_file() or file_sha256(directory / WEIGHTS) != wanted:
        raise ModelError(f"{directory / WEIGHTS} is not the file that {CONFIG} describes; get the model again")
    hashes: dict[str, str] = {}
    with whole_directory(output) as new, (directory / WEIGHTS).open("rb") as file:
        while data := file.read(limit):
            name = f"{WEIGHTS}.{len(hashes):03d}"
            (new / name).write_bytes(data)
            hashes[name] = hashlib.sha256(data).hexdigest()
        (new / PARTS).write_text(json.dumps(hashes, indent=2) + "\n")
        shutil.copyfile(directory / CONFIG, new / CONFIG)
    return [output / name for name in hashes]


def join(parts: Path, output: Path) -> None:
    """Put parts together into a model's directory, written as by `whole_directory`.

    Raises ModelError on a part that is missing or damaged, ConfigError if `output` is not empty.
    """
    check_empty(output)
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
    with whole_directory(output) as new:
        with (new / WEIGHTS).open("wb") as file:
            for name in hashes:
                file.write((parts / name).read_bytes())
        if file_sha256(new / WEIGHTS) != wanted:
            raise ModelError(f"the parts in {parts} are not those of the model that {CONFIG} describes; get them again")
        shutil.copyfile(parts / CONFIG, new / CONFIG)


def _weights_sha256(directory: Path) -> str:
    """Of the whole weights, as a model's configuration has it."""
    sha256 = read_config(directory).get("weights_sha256")
    if not isinstance(sha256, str):
        raise ModelError(f"{directory / CONFIG} lacks the SHA-256 of the weights; get it again")
    return sha256
