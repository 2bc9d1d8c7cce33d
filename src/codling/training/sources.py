"""Where a run's batches come from: pictures held decoded in memory, or shards that are streamed through it."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from codling.errors import ConfigError
from codling.training.augment import augmented
from codling.training.data import (
    Damage,
    augmentation_rngs,
    decode,
    load_pictures,
    longest_needed,
    names_checksum,
    training_batch,
)
from codling.training.recipes import RunConfig
from codling.training.shards import Entry, find_shards, shard_entries

# Share of the free device memory that pictures may take where `keep` is "auto".
DEVICE_SHARE = 0.4


class Source(Protocol):
    """The squares of every step for the places of the batch that this process trains on.

    read: how many pictures batches are chosen from after the last call of `batch`, and the checksum of their names; all
    processes must have read the same, as each takes its places of one batch. damage: what this one could not read.
    """

    description: str
    read: tuple[int, int]
    damage: Damage

    def batch(self, step: int) -> Tensor:
        """Squares (B, 3, crop, crop) in [-1, 1], on the device. Steps are asked for in order, some of them ahead."""
        ...

    def pictures(self, limit: int) -> list[np.ndarray]:
        """At most so many decoded pictures (H, W, 3) uint8, the first ones, for statistics."""
        ...

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint needs to go on at that step."""
        ...

    def close(self) -> None:
        """Stop reading ahead."""
        ...


def open_source(config: RunConfig, *, places: Sequence[int], device: torch.device, state: dict[str, Any]) -> Source:
    """The source that a configuration asks for. state: of a checkpoint, or empty."""
    if config.keep == "stream":
        return StreamedSource(config, places=places, device=device, state=state)
    return HeldSource(config, places=places, device=device)


class HeldSource:
    """All pictures, decoded, in the memory of the device or of the machine."""

    def __init__(self, config: RunConfig, *, places: Sequence[int], device: torch.device):
        self.config, self.places, self.device = config, places, device
        found = load_pictures(config.data, crop=config.crop, scales=config.scales)
        self.held: Sequence[np.ndarray | Tensor] = found.pictures
        self.read, self.damage = (len(found.pictures), found.checksum), found.damage
        size, where = sum(picture.nbytes for picture in found.pictures), "memory"
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            if config.keep == "device" and size > free:
                raise ConfigError(
                    f"training data: {size / 1e9:.1f} GB of decoded pictures do not fit into {free / 1e9:.1f} GB of "
                    "free device memory; set keep=memory or keep=stream"
                )
            if config.keep == "device" or (config.keep == "auto" and size < DEVICE_SHARE * free):
                self.held, where = [torch.from_numpy(p.copy()).to(device) for p in found.pictures], "device memory"
        self.description = (
            f"{len(found.pictures)} pictures, {found.broken} broken, {size / 1e6:.0f} MB decoded in {where}"
        )

    def batch(self, step: int) -> Tensor:
        config = self.config
        return training_batch(
            self.held, step, batch=config.batch, crop=config.crop, scales=config.scales, seed=config.seed,
            places=self.places, device=self.device,
        )  # fmt: skip

    def pictures(self, limit: int) -> list[np.ndarray]:
        return [p.cpu().numpy() if isinstance(p, Tensor) else p for p in self.held[:limit]]

    def state(self, step: int) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.held = []


class StreamedSource:
    """Shards read a window of a few at a time, for sets larger than memory.

    Epochs are permutations of the shards; a window's encoded pictures wait in memory, permuted, and are decoded by the
    process that trains on them. Every process reads every shard. What is left of a window after its last whole batch
    is passed over, and a window without one. Unreadable pictures give way to the next of the window.
    """

    def __init__(self, config: RunConfig, *, places: Sequence[int], device: torch.device, state: dict[str, Any]):
        self.config, self.places, self.device = config, places, device
        self.shards = find_shards(config.data)
        if not self.shards:
            raise ConfigError(f"training data: {config.data} has no tar shards; keep=stream needs them")
        self.damage = Damage(config.data)
        # Windows of an epoch, and how many in a row were without a whole batch.
        self.windows, self.too_small = -(-len(self.shards) // config.window), 0
        # The steps at which windows began, oldest first; batches are asked for ahead of the step that is trained.
        self.begun: list[tuple[int, int]] = [(state.get("first_step", 0), state.get("window", 0))]
        self.reader, self.decoders = ThreadPoolExecutor(1), ThreadPoolExecutor()
        self._enter(self.begun[0][1], self._read(self.begun[0][1]))
        self.ahead = self._read_ahead()
        self.description = f"{len(self.shards)} shards, streamed {config.window} at a time"

    def batch(self, step: int) -> Tensor:
        config = self.config
        first, number = self.begun[-1]
        if step < first:
            raise ConfigError(f"training data: streams only go forwards, step {step} is before {first}")
        if (step - first + 1) * config.batch > len(self.window):
            # The last window of an epoch has what shards are left, perhaps not enough for a batch.
            self.too_small = self.too_small + 1 if step == first else 0
            if self.too_small == self.windows:
                raise ConfigError(
                    f"training data: no window of {config.window} shards has a batch of {config.batch} pictures (the "
                    f"last has {len(self.window)}); raise window or lower batch"
                )
            self.begun = [*self.begun[-1:], (step, number + 1)]
            self._enter(number + 1, self.ahead.result())
            self.ahead = self._read_ahead()
            return self.batch(step)
        start = (step - first) * config.batch
        pictures = self._usable([start + place for place in self.places])
        rngs = augmentation_rngs(step, self.places, seed=config.seed)
        return augmented(pictures, rngs, crop=config.crop, scales=config.scales, device=self.device)

    def pictures(self, limit: int) -> list[np.ndarray]:
        return self._usable(range(min(limit, len(self.window))))

    def state(self, step: int) -> dict[str, Any]:
        first, window = next(begun for begun in reversed(self.begun) if begun[0] <= step)
        return {"first_step": first, "window": window}

    def close(self) -> None:
        self.reader.shutdown(wait=False, cancel_futures=True)
        self.decoders.shutdown(wait=False, cancel_futures=True)

    def _read_ahead(self) -> Future[list[Entry]]:
        return self.reader.submit(self._read, self.begun[-1][1] + 1)

    def _read(self, window: int) -> list[Entry]:
        """The entries of the shards of a window."""
        size = self.config.window
        epoch, place = divmod(window, self.windows)
        order = np.random.default_rng([self.config.seed, 2, epoch]).permutation(len(self.shards))
        chosen = (self.shards[number] for number in order[place * size : (place + 1) * size])
        return [entry for shard in chosen for entry in shard_entries(shard)]

    def _enter(self, window: int, found: list[Entry]) -> None:
        """Choose batches from these entries, in the order of the window of that number."""
        for entry in found:
            if not entry.data:
                self.damage.count(entry.name, broken=True)
        self.damage.check()
        order = np.random.default_rng([self.config.seed, 3, window]).permutation(len(found))
        self.window = [found[number] for number in order if found[number].data]
        self.read = len(self.window), names_checksum(entry.name for entry in self.window)

    def _usable(self, places: Sequence[int]) -> list[np.ndarray]:
        """For each place of the window its picture, or the next that can be read and is large enough."""
        found = list(self.decoders.map(self._next_usable, places))
        for picture, tried in found:
            for name in tried:
                self.damage.count(name, broken=True)
            self.damage.count("", broken=False)
            if picture is None:
                raise ConfigError(
                    f"training data: no picture of at least {self._smallest():.0f} px in the {self.config.window} "
                    f"shards of a window of {self.config.data}"
                )
        self.damage.check()
        return [picture for picture, _ in found if picture is not None]

    def _next_usable(self, place: int) -> tuple[np.ndarray | None, list[str]]:
        """A picture, or None where the whole window has none, and the names of what could not be read before it."""
        unreadable = []
        for number in range(place, place + len(self.window)):
            entry = self.window[number % len(self.window)]
            picture = decode(entry.data, longest_needed(self.config.crop, self.config.scales))
            if picture is None:
                unreadable.append(entry.name)
            elif min(picture.shape[:2]) >= self._smallest():
                return picture, unreadable
        return None, unreadable

    def _smallest(self) -> float:
        return self.config.crop / self.config.scales[1]
