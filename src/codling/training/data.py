"""Training pictures decoded once, and the batch of every step: a pure function of seed, step and place in the batch."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codling.errors import ConfigError, ImageError
from codling.pictures import load_picture
from codling.training.augment import augmented
from codling.training.shards import Entry, entries

MAX_BROKEN = 0.01
# How much crops are enlarged, unless a recipe says otherwise.
SCALES = (0.7, 1.3)
# Larger pictures count as broken; they are shrunk before they are kept, so the limit is above that of coding.
MAX_TRAINING_PIXELS = 2**27
# Entries that wait, encoded, for the threads that decode them.
DECODE_AHEAD = 256


class Damage:
    """Counts entries that cannot be read, and stops a run that has too many."""

    def __init__(self, data: str):
        self.data, self.seen = data, 0
        self.names: list[str] = []

    def count(self, name: str, *, broken: bool) -> None:
        """An entry was read, or could not be."""
        self.seen += 1
        if broken:
            self.names.append(name)

    def check(self) -> None:
        """Raises ConfigError if more than 1% of at least 100 entries are broken."""
        if len(self.names) > MAX_BROKEN * max(self.seen, 100):
            raise ConfigError(
                f"training data: {len(self.names)} of {self.seen} entries of {self.data} cannot be read, more than "
                f"{MAX_BROKEN:.0%}; repair or remove them. The first: {', '.join(self.names[:3])}"
            )


@dataclass(frozen=True)
class PictureSet:
    """Decoded pictures, each (H, W, 3) uint8, the checksum of their names, and what could not be read."""

    pictures: list[np.ndarray]
    checksum: int
    damage: Damage

    @property
    def broken(self) -> int:
        """How many entries could not be read."""
        return len(self.damage.names)


def names_checksum(names: Iterable[str]) -> int:
    """CRC-32 of names in their order, by which processes tell whether they have read the same."""
    # Names of files that are not UTF-8 have surrogates.
    return zlib.crc32("\n".join(names).encode(errors="backslashreplace"))


def decode(data: bytes, longest: int) -> np.ndarray | None:
    """A picture file as (H, W, 3) uint8, its short side shrunk to at most `longest`; None if it cannot be read.

    It becomes what the encoder would make of it: upright, 8 bits, sRGB, on white where it is transparent.
    """
    try:
        picture = Image.fromarray(load_picture(data, max_pixels=MAX_TRAINING_PIXELS).rgb)
    except ImageError:
        return None
    if min(picture.size) > longest:
        factor = longest / min(picture.size)
        size = (round(picture.width * factor), round(picture.height * factor))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture)


def longest_needed(crop: int, scales: tuple[float, float]) -> int:
    """Short side in pixels beyond which no crop gains anything."""
    return int(crop / scales[0]) + 1


def decoded(found: Iterator[Entry], longest: int) -> Iterator[tuple[str, np.ndarray | None]]:
    """Names and pictures, in order, decoded by all cores."""
    with ThreadPoolExecutor() as threads:
        while chunk := list(islice(found, DECODE_AHEAD)):
            pictures = threads.map(lambda entry: decode(entry.data, longest), chunk)
            yield from zip((entry.name for entry in chunk), pictures, strict=True)


def load_pictures(
    data: str | Path, *, crop: int, scales: tuple[float, float] = SCALES, limit: int | None = None
) -> PictureSet:
    """Decode the pictures that `data` names (see `shards`), shrunk so that no crop needs more than their size.

    Raises ConfigError if there is none, or if more than 1% of at least 100 cannot be read.
    """
    pictures: list[np.ndarray] = []
    names: list[str] = []
    damage = Damage(str(data))
    for name, picture in decoded(entries(str(data)), longest_needed(crop, scales)):
        damage.count(name, broken=picture is None)
        if picture is not None and min(picture.shape[:2]) >= crop / scales[1]:
            pictures.append(picture)
            names.append(name)
        if limit is not None and len(pictures) >= limit:
            break
    damage.check()
    if not pictures:
        unread = f" (cannot be read: {', '.join(damage.names[:3])})" if damage.names else ""
        raise ConfigError(
            f"training data: no picture of at least {ceil(crop / scales[1])} px a side in {data}{unread}. Name others "
            "in data, or lower crop"
        )
    return PictureSet(pictures, names_checksum(names), damage)


def batch_indices(step: int, *, batch: int, count: int, seed: int) -> np.ndarray:
    """Which pictures form the batch of a step: epochs are permutations, a pure function of seed and step."""
    places = np.arange(step * batch, (step + 1) * batch)
    orders = {e: np.random.default_rng([seed, e]).permutation(count) for e in np.unique(places // count)}
    return np.array([orders[place // count][place % count] for place in places])


def augmentation_rngs(step: int, places: Sequence[int], *, seed: int) -> list[np.random.Generator]:
    """A generator for each place of the batch, so that a process draws what it would alone."""
    return [np.random.default_rng([seed, 1 << 32, step, place]) for place in places]


def training_batch(
    pictures: Sequence[np.ndarray | Tensor],
    step: int,
    *,
    batch: int,
    crop: int,
    scales: tuple[float, float] = SCALES,
    seed: int,
    places: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """The batch of a step, `(batch, 3, crop, crop)` in [-1, 1], or only these `places` of it. device: default CPU."""
    places = range(batch) if places is None else places
    chosen = batch_indices(step, batch=batch, count=len(pictures), seed=seed)
    rngs = augmentation_rngs(step, places, seed=seed)
    return augmented(
        [pictures[chosen[place]] for place in places],
        rngs,
        crop=crop,
        scales=scales,
        device=device or torch.device("cpu"),
    )
