"""The demonstration: photographs to files and back, with a sheet to look at."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from codling import api
from codling.codecs.base import Codec
from codling.evaluation.metrics import psnr
from codling.evaluation.sheet import Panel
from codling.pictures import load_picture


@dataclass(frozen=True)
class Demonstration:
    """One photograph's round trip. `decoded` maps steps, as text, to (picture, PSNR in dB, seconds)."""

    name: str
    original: Image.Image
    data: bytes
    encode_seconds: float
    decoded: dict[str, tuple[Image.Image, float, float]]

    @property
    def bpp(self) -> float:
        return 8 * len(self.data) / (self.original.width * self.original.height)

    def panels(self) -> list[Panel]:
        """A row of the comparison sheet."""
        row = [Panel(self.original, f"{self.name}: original")]
        for steps, (image, decibel, _) in self.decoded.items():
            row.append(Panel(image, f"{len(self.data)} bytes, {steps}, {decibel:.2f} dB"))
        return row


def way_of(steps: int | None) -> str:
    """A number of steps as text, None for the model's default."""
    return "default" if steps is None else f"{steps} step{'s' * (steps > 1)}"


def demonstrate(paths: list[Path], codec: Codec, *, steps: tuple[int | None, ...]) -> Iterator[Demonstration]:
    """Encode each photograph once and decode its bytes at every number of steps, None for the model's default."""
    for path in paths:
        begin = time.perf_counter()
        data = api.encode(path, model=codec)
        encode_seconds = time.perf_counter() - begin
        original = Image.fromarray(load_picture(path).rgb)
        decoded = {}
        for count in steps:
            begin = time.perf_counter()
            image = api.decode(data, model=codec, steps=count)
            seconds = time.perf_counter() - begin
            decoded[way_of(count)] = (image, psnr(np.asarray(original), np.asarray(image)), seconds)
        yield Demonstration(path.stem, original, data, encode_seconds, decoded)


def demonstrate_budgets(paths: list[Path], codec: Codec, *, budgets: tuple[int, ...]) -> Iterator[list[Panel]]:
    """A row of a sheet for each photograph: the faithful picture from files of so many bytes."""
    for path in paths:
        original = Image.fromarray(load_picture(path).rgb)
        row = [Panel(original, f"{path.stem}: original")]
        for budget in budgets:
            data = api.encode(path, model=codec, max_bytes=budget)
            image = api.decode(data, model=codec, steps=1)
            decibel = psnr(np.asarray(original), np.asarray(image))
            row.append(Panel(image, f"{len(data)} bytes, {decibel:.2f} dB"))
        yield row
