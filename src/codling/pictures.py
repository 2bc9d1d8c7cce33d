"""Pictures in and out: any file Pillow opens becomes 8-bit sRGB, with what was left out said in warnings."""

import io
import itertools
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from codling.bitstream.container import MAX_PIXELS, MAX_SIDE
from codling.configuration import suggest
from codling.errors import CodlingError, ConfigError, FormatError, ImageError

Extra = Literal["alpha", "icc", "exif"]
PictureLike = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray


@dataclass(frozen=True)
class Picture:
    """An upright 8-bit picture and what travels with it.

    rgb: (H, W, 3) uint8, sRGB unless `icc` is kept. alpha: (H, W) uint8 or None. icc, exif: raw, or None.
    warnings: what the conversion changed or dropped, one sentence each.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    warnings: tuple[str, ...] = ()


def load_picture(source: PictureLike, *, keep: Extra | Collection[Extra] = (), max_pixels: int = MAX_PIXELS) -> Picture:
    """Open and convert a picture: a path, the bytes of a file, a Pillow image, or a uint8 array (H, W[, 3 or 4]).

    Grayscale, palette, CMYK and 16-bit pictures become 8-bit RGB; EXIF orientation is applied; colours are converted
    to sRGB; of an animation the first frame is taken. Transparency is laid on white unless "alpha" is in `keep`.
    Raises ImageError on what is not a picture, is damaged, or has more than `max_pixels` (or than Pillow opens),
    OSError if a path cannot be read, ConfigError on names in `keep` that there are none of.
    """
    kept, warnings = _extras(keep), []
    try:
        image = _open(source)
        if image.width * image.height > max_pixels or max(image.size) > MAX_SIDE:
            raise ImageError(
                f"the picture has {image.width} x {image.height} px, more than the limit of {max_pixels:,} pixels or "
                f"{MAX_SIDE:,} a side; shrink it or raise max_pixels"
            )
        if getattr(image, "n_frames", 1) > 1:
            warnings.append(f"the picture has {getattr(image, 'n_frames', 1)} frames; only the first is coded")
            image.seek(0)
        image.load()
    except UnidentifiedImageError as error:
        found = source if isinstance(source, str | os.PathLike) else "these bytes are of no format that Pillow knows"
        raise ImageError(f"not a picture that can be opened: {found}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"the picture is larger than Pillow opens ({error}); shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS "
            "and max_pixels"
        ) from error
    except Exception as error:  # whatever Pillow's readers stumble over: one damaged file must not end a folder's run
        # An OSError that names a file is about that file, missing or not readable, and not about what is in it.
        if isinstance(error, CodlingError) or getattr(error, "filename", None) is not None:
            raise
        raise ImageError(f"the picture is damaged, cut, or of a kind that Pillow does not read: {error}") from error

    icc = image.info.get("icc_profile")
    image, exif = _upright(image, warnings, keep_exif="exif" in kept)
    image = _eight_bits(image, warnings)
    alpha: np.ndarray | None = None
    try:
        if image.has_transparency_data:
            # Pillow takes "La", with its colours times alpha, to "LA" only.
            rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            alpha = np.asarray(rgba.getchannel("A"))
            if alpha.min() == 255:
                alpha = None
            image = rgba if alpha is not None and "alpha" not in kept else rgba.convert("RGB")
        image, icc = _to_rgb(image, icc, warnings, keep_icc="icc" in kept)
    except (TypeError, ValueError) as error:
        raise ImageError(f"a picture of mode {image.mode} cannot be converted: {error}; save it as RGB") from error
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image, alpha = Image.alpha_composite(white, image).convert("RGB"), None
        warnings.append("the picture is partly transparent; it was laid on white (keep alpha to store it)")
    return Picture(np.asarray(image), alpha, icc, exif, tuple(warnings))


def save_picture(picture: Picture) -> Image.Image:
    """Picture -> Pillow image with alpha, and with profile and EXIF in `info`.

    PNG and TIFF get the profile by themselves; for other formats, and for EXIF, `save` has to be told:
    `image.save("x.jpg", icc_profile=image.info.get("icc_profile"), exif=image.info.get("exif", b""))`.
    """
    image = Image.fromarray(picture.rgb)
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
    if picture.icc:
        image.info["icc_profile"] = picture.icc
    if picture.exif:
        image.info["exif"] = picture.exif
    return image


def to_image_array(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [-1, 1]."""
    return np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32) / 127.5 - 1


def from_image_array(image: np.ndarray) -> np.ndarray:
    """(3, H, W) float in [-1, 1] -> (H, W, 3) uint8, rounded to the nearest and clipped."""
    rounded = np.rint((image.transpose(1, 2, 0).astype(np.float32) + 1) * 127.5)
    return np.clip(rounded, 0, 255).astype(np.uint8)


def encode_alpha(alpha: np.ndarray) -> bytes:
    """(H, W) uint8 -> a grayscale PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(alpha).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def decode_alpha(data: bytes, *, height: int, width: int) -> np.ndarray:
    """The inverse of `encode_alpha`. Raises FormatError unless it is a grayscale PNG of that size."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode == "L" and image.size == (width, height):
                return np.asarray(image)
            found = f"of mode {image.mode} and {image.width} x {image.height} px"
    except Exception as error:  # see `load_picture`
        raise FormatError(f"the stored alpha is not a PNG file that can be read: {error}") from error
    raise FormatError(f"the stored alpha is {found}, wanted L and {width} x {height} px: the file is damaged")


def _extras(keep: Extra | Collection[Extra]) -> frozenset[Extra]:
    """The names in `keep`, one or several. Raises ConfigError on one that there is none of."""
    names, known = {keep} if isinstance(keep, str) else set(keep), get_args(Extra)
    for name in names.difference(known):
        raise ConfigError(f"cannot keep {name!r}{suggest(str(name), known)}")
    return frozenset(names)


def _open(source: PictureLike) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return Image.open(io.BytesIO(source))
    if isinstance(source, np.ndarray):
        shape = source.shape
        if source.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
            raise ImageError(f"an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), got {source.dtype} {shape}")
        return Image.fromarray(source)
    if isinstance(source, str | os.PathLike):
        return Image.open(Path(source))
    raise ImageError(
        "a picture is a path, the bytes of a file (of an open one, what its read() gives), a Pillow image or a uint8 "
        f"array, got {type(source).__name__}"
    )


def _upright(image: Image.Image, warnings: list[str], *, keep_exif: bool) -> tuple[Image.Image, bytes | None]:
    """The picture turned as its EXIF data say, and these data without the turn if they are kept and there are any."""
    try:
        image = ImageOps.exif_transpose(image)
        return image, (image.getexif().tobytes() if keep_exif and image.getexif() else None)
    except Exception as error:  # see `load_picture`
        warnings.append(f"the EXIF data are damaged and were ignored ({error})")
        return image, None


def _eight_bits(image: Image.Image, warnings: list[str]) -> Image.Image:
    """Samples of 16 bits -> 8 bits, of mode L, or LA if the picture names a transparent level; others as they are.

    Raises ImageError on floating point samples.
    """
    if image.mode == "F":
        raise ImageError("the picture has floating point samples of unknown range; save it with 8 or 16 bits first")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    wide = np.asarray(image).astype(np.int64)
    narrow = Image.fromarray(((np.clip(wide, 0, 65535) + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:
        narrow.putalpha(Image.fromarray(np.where(wide == image.info["transparency"], 0, 255).astype(np.uint8)))
    warnings.append("16-bit samples were rounded to 8 bits")
    return narrow


def _to_rgb(
    image: Image.Image, icc: bytes | None, warnings: list[str], *, keep_icc: bool
) -> tuple[Image.Image, bytes | None]:
    """Any mode -> RGB (or RGBA where it is so), in sRGB unless the profile is kept."""
    target = "RGBA" if image.mode == "RGBA" else "RGB"
    colours = (icc or b"")[16:20]  # what the profile is for; a gray one is of no use to who gets RGB
    if icc is None or (keep_icc and colours == b"RGB "):
        return (image if image.mode == target else image.convert(target)), icc
    mode = "L" if colours == b"GRAY" else image.mode if image.mode in ("RGB", "RGBA", "CMYK") else target
    result = "RGB" if mode == "L" else target
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, result)
        if _is_identity(transform, mode, result):
            return image.convert(target), None
        converted = ImageCms.applyTransform(image.convert(mode), transform)
        if converted is None:
            raise ImageCms.PyCMSError("no conversion")
        if result != target:
            converted.putalpha(image.getchannel("A"))
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        warnings.append(f"the colour profile cannot be applied and was ignored ({error})")
        return image.convert(target), None
    warnings.append("colours were converted from the picture's profile to sRGB")
    return converted, None


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str, target: str) -> bool:
    """Whether a transform leaves colours as they are, to a level in 255: whatever a profile is called, then it is sRGB.

    Tried on every grey, and on primaries and their mixtures, pale ones: wide gamuts clip the pure ones to themselves.
    """
    colours = [*((grey, grey, grey) for grey in range(256)), *itertools.product((64, 192), repeat=3)]
    image = Image.fromarray(np.array([colours], np.uint8)).convert(mode)
    before, after = image.convert(target), ImageCms.applyTransform(image, transform)
    return after is not None and int(np.abs(np.asarray(after, int) - np.asarray(before, int)).max()) <= 1
