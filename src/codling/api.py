"""Bytes to pictures and back: the file to read first.

data = codling.encode("photo.jpg", max_bytes=500)  # a file of 500 bytes
codling.decode(data).save("photo.png")             # grown back
"""

import math
import operator
import os
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from codling.bitstream.container import MAX_PIXELS, PROGRESSIVE, CodecId, SectionTag, Stream, pack, unpack
from codling.configuration import suggest
from codling.errors import ConfigError, FormatError, ModelError, RateError
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
from codling.weights.catalogue import DEFAULT_MODEL, LEVEL_MODEL, RATE_MODEL, entries

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

    from codling.codecs.base import Codec, Finisher, RateTarget

FileLike = bytes | str | os.PathLike[str]
MODEL_OF_CODEC = {"cod": DEFAULT_MODEL, "diffc": RATE_MODEL, "oscar": LEVEL_MODEL}


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
    model: "str | os.PathLike[str] | Codec | None" = None,
    codec: str | None = None,
    max_bytes: int | None = None,
    bpp: float | None = None,
    psnr: float | None = None,
    noise_level: int | None = None,
    level: int | None = None,
    keep: Extra | Collection[Extra] = (),
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> bytes:
    """A picture -> the bytes of a `.roe` file.

    picture: a path, the bytes of a picture file, a Pillow image, or a uint8 array; any size and mode.
    model: a name (`codling models` lists them), a model's directory, or what `load` returned. None takes
        that of the codec: cod-xs, diffc-xs or oscar-s; without a codec diffc-xs where a rate is asked for, oscar-s
        where a level is, and else cod-xs.
    codec: the scheme, "cod", "diffc" or "oscar"; None takes the model's own.
    max_bytes, bpp, psnr, noise_level, level: one of them says how far to go: the file's length, met from below; the
        same in bits a pixel; the PSNR of the faithful picture in dB, met from above; where DiffC stops, in 1024ths of
        noise; or the entry of OSCAR's rate table, 0 the lowest rate. None goes as far as the model does by default.
        Codec "cod" has one rate a picture; codec "oscar" takes the highest level that fits the bytes.
    keep: one or several of "alpha", "icc" and "exif", what the file should carry along, losslessly.
    device: "auto", "cpu" or "cuda". max_pixels: larger pictures are refused; files are also held to Pillow's own
        limit, twice PIL.Image.MAX_IMAGE_PIXELS.

    Raises ImageError if the picture cannot be read, OSError if its path cannot, ModelError if the model cannot,
    RateError on a rate that cannot be met and ConfigError on other options that cannot be; warns (PictureWarning) of
    anything that was changed, such as transparency laid on white.
    """
    import torch

    loaded = load_picture(picture, keep=keep, max_pixels=max_pixels)
    for message in loaded.warnings:
        warnings.warn(message, PictureWarning, stacklevel=2)
    asked = any(given is not None for given in (max_bytes, bpp, psnr, noise_level))
    model = model or default_model(codec=codec, rate_asked=asked, level_asked=level is not None)
    coder = load(model, codec=codec, device=device)
    empty = empty_stream(loaded, coder)
    target = rate_target(empty, max_bytes=max_bytes, bpp=bpp, psnr=psnr, noise_level=noise_level, level=level)
    payload = coder.encode(torch.from_numpy(to_image_array(loaded.rgb))[None], target)
    return pack(replace(empty, payload=payload))


def decode(
    data: FileLike,
    *,
    model: "str | os.PathLike[str] | Codec | None" = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    seed: int = 0,
    score_scale: float = 1.0,
    finish: "str | os.PathLike[str] | Finisher | None" = None,
    upto_bytes: int | None = None,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> "Image":
    """A `.roe` file, its bytes or its path -> a Pillow image.

    steps: 1 gives the faithful picture, close to the mean of all that fit the bytes; more give a realistic one. None
        is the model's default, as for guidance and sampler ("euler", "heun", "adams2" to "adams4"); without all three
        a CoD model with a finisher, like cod-xs, gives texture to the faithful picture, in one step more.
    seed: of the start noise of codec "cod": another gives another picture that fits the same bytes. In streams of the
        other codecs nothing is left to it.
    score_scale: of DiffC streams decoded with several steps: above 1 smoother, below 1 grainier.
    finish: an OSCAR model, like oscar-s, that makes a picture with texture of what the stream's own model decodes
        faithfully, in one step more; a name, a directory, or what `load_finisher` returned. Codecs "diffc" and "cod".
    upto_bytes: use only so much of a progressive file's beginning, as if the rest had not come yet.
    model: None finds the model that the file names.

    A profile and EXIF that were kept are in the image's `info`; `pictures.save_picture` says how they are saved.

    Raises FormatError if the bytes are not a whole, undamaged file, OSError if the path cannot be read, ModelError if
    they need another model or `finish` is none that can, and ConfigError on options that do not go together.
    """
    from codling.codecs.base import DecodeOptions

    stream = unpack(file_bytes(data), max_pixels=max_pixels)
    alpha = stored_alpha(stream)
    if isinstance(finish, str | os.PathLike):
        finish = load_finisher(finish, device=device)
    options = DecodeOptions(
        steps=steps, guidance=guidance, sampler=sampler, seed=seed, score_scale=score_scale, finish=finish
    )
    if upto_bytes is not None:
        stream = _beginning(stream, upto_bytes)
    codec = codec_for(stream, model, device)
    image = codec.decode(stream.payload, height=stream.height, width=stream.width, options=options)
    return picture_of(image, stream, alpha)


def preview(
    data: FileLike,
    *,
    model: "str | os.PathLike[str] | Codec | None" = None,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> "Iterator[tuple[int, Image]]":
    """How a progressive file's picture grows: (bytes of the file used so far, faithful picture) after each step.

    Raises as `decode` does, and ConfigError if the file is not progressive, at once; FormatError of what only its
    payload shows where the iteration gets there.
    """
    from codling.codecs.base import DecodeOptions
    from codling.codecs.diffc import DiffCCodec

    stream = unpack(file_bytes(data), max_pixels=max_pixels)
    alpha = stored_alpha(stream)
    codec = codec_for(stream, model, device)
    if not isinstance(codec, DiffCCodec):
        raise ConfigError("only progressive files (codec diffc) have previews; decode this one whole")

    def growing() -> "Iterator[tuple[int, Image]]":
        for chain, used in codec.walk(stream.payload, height=stream.height, width=stream.width):
            image = codec.finish(chain, height=stream.height, width=stream.width, options=DecodeOptions(steps=1))
            yield stream.header_size + used, picture_of(image, stream, alpha)

    return growing()


def file_bytes(source: FileLike) -> bytes:
    """A `.roe` file's bytes, given as they are or by their path.

    Raises OSError if a path cannot be read, FormatError if it is neither.
    """
    if isinstance(source, str | os.PathLike):
        return Path(source).read_bytes()
    if not isinstance(source, bytes | bytearray | memoryview):
        raise FormatError(
            "a .roe file is given by its bytes (of an open one, what its read() gives) or its path, got "
            f"{type(source).__name__}"
        )
    return bytes(source)


def stored_alpha(stream: Stream) -> "np.ndarray | None":
    """The alpha (H, W) uint8 that a stream has beside its payload, if any. Raises FormatError if it is damaged."""
    data = stream.sections.get(SectionTag.ALPHA)
    return None if data is None else decode_alpha(data, height=stream.height, width=stream.width)


def picture_of(image: "torch.Tensor", stream: Stream, alpha: "np.ndarray | None") -> "Image":
    """An image (1, 3, H, W), its alpha and what else its stream has beside it, as one picture."""
    icc, exif = stream.sections.get(SectionTag.ICC), stream.sections.get(SectionTag.EXIF)
    return save_picture(Picture(from_image_array(image[0].numpy()), alpha, icc, exif))


def empty_stream(picture: Picture, codec: "Codec") -> Stream:
    """The stream of a picture but for its payload."""
    height, width = picture.rgb.shape[:2]
    progressive = codec.codec_id in PROGRESSIVE
    return Stream(codec.codec_id, codec.model_id, width, height, b"", progressive, _sections(picture))


def rate_target(
    empty: Stream, *, max_bytes: int | None, bpp: float | None, psnr: float | None = None,
    noise_level: int | None = None, level: int | None = None,
) -> "RateTarget":  # fmt: skip
    """What a payload may take of what was asked of a file, as `encode` has it.

    Raises RateError if nothing is left, and on numbers that are none: not whole, not finite, not above zero.
    """
    from codling.codecs.base import RateTarget

    max_bytes, level = _whole("max_bytes", max_bytes), _whole("level", level)
    noise_level = _whole("noise_level", noise_level)
    bpp, psnr = _positive("bpp", bpp), _positive("psnr", psnr)
    targets = {"max_bytes": max_bytes, "bpp": bpp, "psnr": psnr, "noise_level": noise_level, "level": level}
    if len(given := [name for name, value in targets.items() if value is not None]) > 1:
        raise RateError(f"one rate target at most, got {' and '.join(given)}")
    if bpp is not None:
        max_bytes = int(bpp * empty.width * empty.height / 8)
    if max_bytes is not None and max_bytes <= empty.header_size:
        raise RateError(
            f"a budget of {max_bytes} bytes is too small: the header of this picture's file alone takes "
            f"{empty.header_size}, with {sum(map(len, empty.sections.values()))} bytes of extras kept"
        )
    payload_bytes = None if max_bytes is None else max_bytes - empty.header_size
    return RateTarget(max_bytes=payload_bytes, psnr=psnr, noise_level=noise_level, level=level)


def default_model(*, codec: str | None = None, rate_asked: bool = False, level_asked: bool = False) -> str:
    """The model that `encode` takes if it is told none: that of the codec asked for, else of the rate."""
    if codec in MODEL_OF_CODEC:
        return MODEL_OF_CODEC[codec]
    if level_asked:
        return LEVEL_MODEL
    return RATE_MODEL if rate_asked else DEFAULT_MODEL


def info(data: FileLike, *, max_pixels: int = MAX_PIXELS) -> Info:
    """What a `.roe` file, its bytes or its path, says of itself; no network is loaded.

    Raises FormatError on a damaged header or a wrong checksum, and OSError if the path cannot be read.
    """
    data = file_bytes(data)
    stream = unpack(data, max_pixels=max_pixels)
    names = {entry.model_id: entry.name for entry in entries()}
    return Info(
        codec=stream.codec.name.lower(),
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


def load(
    model: "str | os.PathLike[str] | Codec" = DEFAULT_MODEL, *, codec: str | None = None, device: str = "auto"
) -> "Codec":
    """A model ready to code, for `encode` and `decode` to reuse; what is loaded already is returned as it is.

    codec: "cod", "diffc" or "oscar", None for the model's own. Raises ModelError, naming the nearest models.
    """
    from codling.weights.registry import load as load_from_registry

    wanted = None if codec is None else _codec_id(codec)
    if isinstance(model, str | os.PathLike):
        return load_from_registry(model, device=torch_device(device), codec=wanted)
    if wanted not in (None, model.codec_id):
        raise ModelError(f"the model is loaded as codec {model.codec_id.name.lower()}; load it as {codec} instead")
    return model


def load_finisher(model: "str | os.PathLike[str]", *, device: str = "auto") -> "Finisher":
    """A model ready to finish what others have decoded, for `decode` to reuse. Raises ModelError unless it can."""
    from codling.weights.registry import load_finisher as load_from_registry

    return load_from_registry(model, device=torch_device(device))


def load_for(stream: Stream, *, model: "str | os.PathLike[str] | Codec | None" = None, device: str = "auto") -> "Codec":
    """The model that a stream names, or the given one, for the stream's codec: to decode many files with one load."""
    from codling.weights.registry import load_by_id

    if model is None:
        return load_by_id(stream.model_id, device=torch_device(device), codec=stream.codec)
    if isinstance(model, str | os.PathLike):
        return load(model, codec=stream.codec.name.lower(), device=device)
    return model


def torch_device(name: str) -> "torch.device":
    """The device that "auto", "cpu" or "cuda" stands for. Raises ModelError on another name, or without CUDA."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ModelError(f'device must be "auto", "cpu" or "cuda", got {name!r}')
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but torch sees no CUDA device; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _beginning(stream: Stream, size: int) -> Stream:
    """A progressive stream as it was when `size` bytes of its file had come."""
    if not stream.progressive:
        raise ConfigError(f"only progressive files can be cut, and codec {stream.codec.name.lower()} writes none")
    if size < stream.header_size:
        raise ConfigError(f"the header takes {stream.header_size} bytes, so upto_bytes cannot be {size}")
    return replace(stream, payload=stream.payload[: size - stream.header_size])


def codec_for(stream: Stream, model: "str | os.PathLike[str] | Codec | None", device: str) -> "Codec":
    """As `load_for`. Raises ModelError if that is not what the stream was made with."""
    codec = load_for(stream, model=model, device=device)
    if codec.model_id != stream.model_id:
        made_with = next((f" ({entry.name})" for entry in entries() if entry.model_id == stream.model_id), "")
        raise ModelError(
            f"the stream was made with model {stream.model_id:06x}{made_with}, but {codec.name} is "
            f"{codec.model_id:06x}; decode it with the model that made it"
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


def _whole(name: str, value: int | None) -> int | None:
    try:
        return None if value is None else operator.index(value)
    except TypeError:
        raise RateError(f"{name} must be a whole number, got {value!r}") from None


def _positive(name: str, value: float | None) -> float | None:
    try:
        if value is None or (math.isfinite(value) and value > 0):
            return value
    except TypeError:
        pass
    raise RateError(f"{name} must be a finite number above 0, got {value!r}")


def _codec_id(name: str) -> CodecId:
    known = {codec.name.lower(): codec for codec in CodecId}
    if name not in known:
        raise ConfigError(f"unknown codec {name!r}{suggest(name, known)}")
    return known[name]
