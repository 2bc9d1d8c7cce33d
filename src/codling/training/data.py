"""Training pictures: tar shards or folders, decoded once into memory, cropped and augmented deterministically."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from codling.errors import ConfigError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff"}
MAX_BROKEN = 0.01
# How much crops are enlarged, unless a recipe says otherwise.
SCALES = (0.7, 1.3)


@dataclass(frozen=True)
class PictureSet:
    """Decoded pictures, each (H, W, 3) uint8, and how many entries could not be read."""

    pictures: list[np.ndarray]
    broken: int


def entries(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Every picture's name and bytes in a directory: of its tar shards if it has any, else of its picture files."""
    shards = sorted(directory.glob("*.tar"))
    for shard in shards:
        try:
            with tarfile.open(shard) as tar:
                for member in tar:
                    if Path(member.name).suffix.lower() in SUFFIXES and (file := tar.extractfile(member)):
                        yield f"{shard.name}/{member.name}", file.read()
        except (OSError, tarfile.TarError):
            yield shard.name, b""  # counted as broken, the other shards go on
    if not shards:
        for path in sorted(directory.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield str(path), path.read_bytes()


def load_pictures(
    directory: Path, *, crop: int, scales: tuple[float, float] = SCALES, limit: int | None = None
) -> PictureSet:
    """Decode the pictures of `directory`, shrunk so that no crop needs more than their size.

    Raises ConfigError if there is none, or if more than 1% of at least 100 cannot be read.
    """
    if not directory.is_dir():
        raise ConfigError(f"training data: {directory} is not a directory; set data=DIR with pictures or tar shards")
    longest = int(crop / scales[0]) + 1
    pictures: list[np.ndarray] = []
    broken = 0
    for _, data in entries(directory):
        try:
            with Image.open(io.BytesIO(data)) as opened:
                picture = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            broken += 1
            continue
        if min(picture.size) > longest:
            factor = longest / min(picture.size)
            size = (round(picture.width * factor), round(picture.height * factor))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        if min(picture.size) >= crop / scales[1]:
            pictures.append(np.asarray(picture))
        if limit is not None and len(pictures) >= limit:
            break
    total = len(pictures) + broken
    if broken > MAX_BROKEN * max(total, 100):
        raise ConfigError(
            f"training data: {broken} of {total} entries in {directory} cannot be read; repair or remove them"
        )
    if not pictures:
        raise ConfigError(f"training data: no picture of at least {int(crop / scales[1])} px in {directory}")
    return PictureSet(pictures, broken)


def batch_indices(step: int, *, batch: int, count: int, seed: int) -> np.ndarray:
    """Which pictures form the batch of a step: epochs are permutations, a pure function of seed and step."""
    places = np.arange(step * batch, (step + 1) * batch)
    orders = {e: np.random.default_rng([seed, e]).permutation(count) for e in np.unique(places // count)}
    return np.array([orders[place // count][place % count] for place in places])


def augmented_crop(
    picture: np.ndarray, crop: int, rng: np.random.Generator, *, scales: tuple[float, float] = SCALES
) -> Tensor:
    """A random square of random scale, flip and slight colour change, `(3, crop, crop)` in [-1, 1]."""
    height, width = picture.shape[:2]
    scale = rng.uniform(*scales) if rng.random() < 0.6 else 1.0
    side = int(min(height, width, round(crop / scale)))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    square = torch.from_numpy(picture[top : top + side, left : left + side].copy()).permute(2, 0, 1).float()
    if side != crop:
        square = F.interpolate(square[None], (crop, crop), mode="bilinear", antialias=True, align_corners=False)[0]
    if rng.random() < 0.5:
        square = square.flip(-1)
    image = square / 127.5 - 1
    if rng.random() < 0.3:
        gain = torch.from_numpy(rng.uniform(0.85, 1.15, (3, 1, 1)).astype(np.float32))
        image = ((image + 1) * gain * float(rng.uniform(0.8, 1.2)) - 1).clamp(-1, 1)
    if rng.random() < 0.03:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    return image


def training_batch(
    pictures: list[np.ndarray], step: int, *, batch: int, crop: int, scales: tuple[float, float] = SCALES, seed: int
) -> Tensor:
    """The batch of a step, `(batch, 3, crop, crop)` in [-1, 1]."""
    chosen = batch_indices(step, batch=batch, count=len(pictures), seed=seed)
    rng = np.random.default_rng([seed, 1 << 32, step])
    return torch.stack([augmented_crop(pictures[i], crop, rng, scales=scales) for i in chosen])
