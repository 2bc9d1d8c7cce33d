"""Many pictures through an OSCAR network at once, for a GPU that one picture does not fill."""

import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from codling.api import (
    FileLike,
    PictureWarning,
    codec_for,
    empty_stream,
    file_bytes,
    load,
    picture_of,
    rate_target,
    stored_alpha,
)
from codling.bitstream.container import MAX_PIXELS, pack, unpack
from codling.errors import CodlingError, ConfigError
from codling.pictures import Extra, PictureLike, load_picture, to_image_array
from codling.weights.catalogue import LEVEL_MODEL

if TYPE_CHECKING:
    from PIL.Image import Image

    from codling.codecs.base import Codec
    from codling.codecs.oscar import OscarCodec


def encode_batch(
    pictures: Sequence[PictureLike],
    *,
    model: "str | os.PathLike[str] | Codec | None" = None,
    max_bytes: int | None = None,
    bpp: float | None = None,
    level: int | None = None,
    keep: Extra | Collection[Extra] = (),
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> list[bytes]:
    """Pictures -> the bytes of a `.roe` file each, as `encode` makes them: one model for all, and one rate.

    All that have the same size go through the network together, so hand over as many as the device's memory takes.
    Where two indices are all but equally good, rounding in a batch may choose the other. model: None takes `oscar-s`.

    Raises as `encode` does, naming the picture by its place, and ConfigError unless the model is an OSCAR.
    """
    import torch

    coder = _oscar(load(LEVEL_MODEL if model is None else model, device=device))
    loaded = []
    for number, picture in enumerate(pictures):
        with _named("picture", number, len(pictures)):
            loaded.append(load_picture(picture, keep=keep, max_pixels=max_pixels))
    for message in dict.fromkeys(message for picture in loaded for message in picture.warnings):
        warnings.warn(message, PictureWarning, stacklevel=2)
    empty = [empty_stream(picture, coder) for picture in loaded]
    targets = []
    for number, stream in enumerate(empty):
        with _named("picture", number, len(empty)):
            targets.append(rate_target(stream, max_bytes=max_bytes, bpp=bpp, level=level))
    files = [b""] * len(loaded)
    for (height, width), numbers in _alike((stream.height, stream.width) for stream in empty).items():
        images = torch.stack([torch.from_numpy(to_image_array(loaded[number].rgb)) for number in numbers])
        found = coder.tokens(images, [targets[number] for number in numbers])
        for number, tokens in zip(numbers, found, strict=True):
            with _named("picture", number, len(files)):
                payload = coder.pack_within(tokens, targets[number], height=height, width=width)
            files[number] = pack(replace(empty[number], payload=payload))
    return files


def decode_batch(
    files: Sequence[FileLike],
    *,
    model: "str | os.PathLike[str] | Codec | None" = None,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> "list[Image]":
    """`.roe` files of one OSCAR model, their bytes or paths -> Pillow images, as `decode` makes them.

    All that have the same size and level go through the network together. model: None finds the one that they name.

    Raises as `decode` does, naming the file by its place, before any network runs; ConfigError unless the model is an
    OSCAR, and ModelError if files are of another model.
    """
    if not files:
        return []
    streams, alphas, unpacked = [], [], []
    coder: OscarCodec | None = None
    for number, file in enumerate(files):
        with _named("file", number, len(files)):
            stream = unpack(file_bytes(file), max_pixels=max_pixels)
            streams.append(stream)
            alphas.append(stored_alpha(stream))
            coder = _oscar(codec_for(stream, coder or model, device))
            unpacked.append(coder.unpack(stream.payload, height=stream.height, width=stream.width))
    assert coder is not None
    pictures: dict[int, Image] = {}
    for (height, width), numbers in _alike((stream.height, stream.width) for stream in streams).items():
        images = coder.images([unpacked[number] for number in numbers], height=height, width=width)
        for number, image in zip(numbers, images, strict=True):
            pictures[number] = picture_of(image[None], streams[number], alphas[number])
    return [pictures[number] for number in range(len(files))]


def _oscar(codec: "Codec") -> "OscarCodec":
    from codling.codecs.oscar import OscarCodec

    if not isinstance(codec, OscarCodec):
        raise ConfigError(
            f"only OSCAR models like {LEVEL_MODEL} take several pictures at once, and {codec.name} is none as codec "
            f"{codec.codec_id.name.lower()}; encode and decode one by one"
        )
    return codec


@contextmanager
def _named(kind: str, number: int, total: int) -> Iterator[None]:
    """Errors within say which of several it is that they are about."""
    try:
        yield
    except CodlingError as error:
        raise type(error)(f"{kind} {number + 1} of {total}: {error}") from error


def _alike(sizes: Iterable[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """Numbers of those that are of one size."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(size, []).append(number)
    return groups
