"""Many pictures through an OSCAR network at once, for a GPU that one picture does not fill."""

import os
import warnings
from collections.abc import Collection, Iterable, Sequence
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
from codling.errors import ConfigError
from codling.pictures import Extra, PictureLike, load_picture, to_image_array
from codling.weights.catalogue import LEVEL_MODEL

if TYPE_CHECKING:
    from PIL.Image import Image

    from codling.codecs.base import Codec
    from codling.codecs.oscar import OscarCodec


def encode_batch(
    pictures: Sequence[PictureLike],
    *,
    model: "str | os.PathLike[str] | Codec" = LEVEL_MODEL,
    max_bytes: int | None = None,
    bpp: float | None = None,
    level: int | None = None,
    keep: Extra | Collection[Extra] = (),
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> list[bytes]:
    """Pictures -> the bytes of a `.roe` file each, as `encode` makes them: one model for all, and one rate.

    All that have the same size go through the network together, so hand over as many as the device's memory takes.
    Where two indices are all but equally good, rounding in a batch may choose the other.

    Raises as `encode` does, and ConfigError unless the model is an OSCAR; then nothing was encoded.
    """
    import torch

    coder = _oscar(load(model, device=device))
    loaded = [load_picture(picture, keep=keep, max_pixels=max_pixels) for picture in pictures]
    for message in dict.fromkeys(message for picture in loaded for message in picture.warnings):
        warnings.warn(message, PictureWarning, stacklevel=2)
    empty = [empty_stream(picture, coder) for picture in loaded]
    targets = [rate_target(stream, max_bytes=max_bytes, bpp=bpp, level=level) for stream in empty]
    files = [b""] * len(loaded)
    for numbers in _alike((stream.height, stream.width) for stream in empty):
        images = torch.stack([torch.from_numpy(to_image_array(loaded[number].rgb)) for number in numbers])
        payloads = coder.encode_batch(images, [targets[number] for number in numbers])
        for number, payload in zip(numbers, payloads, strict=True):
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

    Raises as `decode` does, ConfigError unless the model is an OSCAR, and ModelError if files are of another model.
    """
    streams = [unpack(file_bytes(file), max_pixels=max_pixels) for file in files]
    alphas = [stored_alpha(stream) for stream in streams]
    if not streams:
        return []
    codec = _oscar(codec_for(streams[0], model, device))
    for stream in streams[1:]:
        codec_for(stream, codec, device)
    pictures: list[Image | None] = [None] * len(streams)
    for numbers in _alike((stream.height, stream.width) for stream in streams):
        height, width = streams[numbers[0]].height, streams[numbers[0]].width
        payloads = [streams[number].payload for number in numbers]
        for number, image in zip(numbers, codec.decode_batch(payloads, height=height, width=width), strict=True):
            pictures[number] = picture_of(image[None], streams[number], alphas[number])
    return [picture for picture in pictures if picture is not None]


def _oscar(codec: "Codec") -> "OscarCodec":
    from codling.codecs.oscar import OscarCodec

    if not isinstance(codec, OscarCodec):
        raise ConfigError(
            f"only OSCAR models like {LEVEL_MODEL} take several pictures at once, and {codec.name} is none as codec "
            f"{codec.codec_id.name.lower()}; encode and decode one by one"
        )
    return codec


def _alike(sizes: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Numbers of those that are of one size."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(size, []).append(number)
    return list(groups.values())
