"""Bytes to pictures and back: the file to read first.

data = codling.encode("photo.jpg")                 # a few hundred bytes
codling.decode(data).save("photo.png")             # grown back
"""

import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from codling.bitstream.container import MAX_PIXELS, SectionTag, Stream, pack, unpack
from codling.errors import ModelError
from codling.pictures import (
    Extra,
    Picture,
    PictureLike,
    decode_alpha,
    encode_alpha,
    from_image_array,
    load_picture,
    save_picture,
    to_image_array,
)
from codling.weights.catalogue import DEFAULT_MODEL, entries

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from codling.codecs.base import Codec


class PictureWarning(UserWarning):
    """Something of the picture was changed or left out on the way in."""


@dataclass(frozen=True)
class Info:
    """What a file says of itself. `bpp` is 8 x its bytes over the picture's pixels; `model` is None if unknown."""

    codec: str
    model: str | None
    model_id: str
    width: int
    height: int
    bytes: int
    header_bytes: int
    bpp: float
    progressive: bool
    sections: dict[str, int]


def encode(
    picture: PictureLike,
    *,
    model: "str | os.PathLike[str] | Codec" = DEFAULT_MODEL,
    keep: Collection[Extra] = (),
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> bytes:
    """A picture -> the bytes of a `.roe` file.

    picture: a path, the bytes of a picture file, a Pillow image, or a uint8 array; any size and mode.
    model: a name (`codling models` lists them), a model's directory, or what `load` returned.
    keep: of "alpha", "icc" and "exif", what the file should carry along, losslessly.
    device: "auto", "cpu" or "cuda". max_pixels: larger pictures are refused.

    Raises ImageError if the picture cannot be read, ModelError if the model cannot; warns (PictureWarning) of anything
    that was changed, such as transparency laid on white.
    """
    import torch

    loaded = load_picture(picture, keep=frozenset(keep), max_pixels=max_pixels)
    for message in loaded.warnings:
        warnings.warn(message, PictureWarning, stacklevel=2)
    codec = load(model, device=device) if isinstance(model, str | os.PathLike) else model
    payload = codec.encode(torch.from_numpy(to_image_array(loaded.rgb))[None])
    height, width = loaded.rgb.shape[:2]
    stream = Stream(codec.codec_id, codec.model_id, width, height, payload, sections=_sections(loaded))
    return pack(stream)


def decode(
    data: bytes,
    *,
    model: "str | os.PathLike[str] | Codec | None" = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    seed: int = 0,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> "Image":
    """The bytes of a `.roe` file -> a Pillow image.

    steps: 1 gives the faithful picture, close to the mean of all that fit the bytes; more give a realistic one. None
        is the model's default, as for guidance and sampler ("euler", "heun", "adams2" to "adams4").
    seed: of the start noise; another seed gives another picture that fits the same bytes.
    model: None finds the model that the file names.

    Raises FormatError if the bytes are not a whole, undamaged file, and ModelError if they need another model.
    """
    from codling.codecs.base import DecodeOptions

    options = DecodeOptions(steps=steps, guidance=guidance, sampler=sampler, seed=seed)
    stream = unpack(data, max_pixels=max_pixels)
    codec = _codec_for(stream, model, device)
    image = codec.decode(stream.payload, height=stream.height, width=stream.width, options=options)
    picture = Picture(
        from_image_array(image[0].numpy()),
        icc=stream.sections.get(SectionTag.ICC),
        exif=stream.sections.get(SectionTag.EXIF),
    )
    if SectionTag.ALPHA in stream.sections:
        alpha = decode_alpha(stream.sections[SectionTag.ALPHA], height=stream.height, width=stream.width)
        picture = replace(picture, alpha=alpha)
    return save_picture(picture)


def info(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Info:
    """What the bytes of a `.roe` file say of themselves; no network is loaded. Raises FormatError as `decode` does."""
    stream = unpack(data, max_pixels=max_pixels)
    names = {entry.model_id: entry.name for entry in entries()}
    return Info(
        codec=stream.codec.name.lower().replace("_", "-"),
        model=names.get(stream.model_id),
        model_id=f"{stream.model_id:06x}",
        width=stream.width,
        height=stream.height,
        bytes=len(data),
        header_bytes=stream.header_size,
        bpp=8 * len(data) / (stream.width * stream.height),
        progressive=stream.progressive,
        sections={tag.name.lower(): len(content) for tag, content in stream.sections.items()},
    )


def load(name_or_directory: str | os.PathLike[str] = DEFAULT_MODEL, *, device: str = "auto") -> "Codec":
    """A model ready to code, for `encode` and `decode` to reuse. Raises ModelError, naming the nearest models."""
    from codling.weights.registry import load as load_from_registry

    return load_from_registry(name_or_directory, device=_device(device))


def load_for(stream: Stream, *, device: str = "auto") -> "Codec":
    """The model that a stream names, for decoding many files with one load."""
    from codling.weights.registry import load_by_id

    return load_by_id(stream.model_id, device=_device(device))


def _codec_for(stream: Stream, model: "str | os.PathLike[str] | Codec | None", device: str) -> "Codec":
    if model is None:
        codec = load_for(stream, device=device)
    else:
        codec = load(model, device=device) if isinstance(model, str | os.PathLike) else model
    if codec.model_id != stream.model_id:
        raise ModelError(
            f"the stream was made with model {stream.model_id:06x}, but {codec.name} is {codec.model_id:06x}; "
            "decode it with the model that made it"
        )
    if codec.codec_id != stream.codec:
        raise ModelError(f"the stream is of codec {stream.codec.name}, which {codec.name} does not decode")
    return codec


def _sections(picture: Picture) -> dict[SectionTag, bytes]:
    sections = {}
    if picture.icc:
        sections[SectionTag.ICC] = picture.icc
    if picture.exif:
        sections[SectionTag.EXIF] = picture.exif
    if picture.alpha is not None:
        sections[SectionTag.ALPHA] = encode_alpha(picture.alpha)
    return sections


def _device(name: str) -> "torch.device":
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ModelError(f'device must be "auto", "cpu" or "cuda", got {name!r}')
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but torch sees no CUDA device; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
