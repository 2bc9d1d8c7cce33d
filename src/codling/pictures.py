"""Pictures in and out: any file Pillow opens becomes 8-bit sRGB, with what was left out said in warnings."""

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from codling.bitstream.container import MAX_PIXELS
from codling.errors import ImageError

Extra = Literal["alpha", "icc", "exif"]
PictureLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


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


def load_picture(source: PictureLike, *, keep: frozenset[Extra] = frozenset(), max_pixels: int = MAX_PIXELS) -> Picture:
    """Open and convert a picture: a path, the bytes of a file, a Pillow image, or a uint8 array (H, W[, 3 or 4]).

    Grayscale, palette, CMYK and 16-bit pictures become 8-bit RGB; EXIF orientation is applied; colours are converted
    to sRGB; of an animation the first frame is taken. Transparency is laid on white unless "alpha" is in `keep`.
    Raises ImageError on what is not a picture, is damaged, or has more than `max_pixels`.
    """
    warnings: list[str] = []
    try:
        image = _open(source)
        if image.width * image.height > max_pixels:
            raise ImageError(
                f"the picture has {image.width} x {image.height} px, more than the limit of {max_pixels:,} pixels; "
                "shrink it or raise max_pixels"
            )
        if getattr(image, "n_frames", 1) > 1:
            warnings.append(f"the picture has {getattr(image, 'n_frames', 1)} frames; only the first is coded")
            image.seek(0)
        image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"not a picture that can be opened: {error}") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, ImageError | FileNotFoundError | IsADirectoryError | PermissionError):
            raise
        raise ImageError(f"the picture is damaged or cut: {error}") from error

    icc = image.info.get("icc_profile")
    image, exif = _upright(image, warnings, keep_exif="exif" in keep)
    alpha: np.ndarray | None = None
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = np.asarray(rgba.getchannel("A"))
        if alpha.min() == 255:
            alpha = None
        image = rgba if alpha is not None and "alpha" not in keep else rgba.convert("RGB")
    image, icc = _to_rgb(image, icc, warnings, keep_icc="icc" in keep)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image, alpha = Image.alpha_composite(white, image).convert("RGB"), None
        warnings.append("the picture is partly transparent; it was laid on white (keep alpha to store it)")
    return Picture(np.asarray(image), alpha, icc, exif, tuple(warnings))


def save_picture(picture: Picture) -> Image.Image:
    """Picture -> Pillow image with alpha, profile and EXIF attached, ready for `save`."""
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
    """The inverse of `encode_alpha`. Raises ImageError unless it is a grayscale PNG of that size."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (width, height) or image.mode != "L":
                raise ImageError(f"alpha is {image.mode} {image.size}, wanted grayscale {(width, height)}")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"the stored alpha is damaged: {error}") from error


def _open(source: PictureLike) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    if isinstance(source, np.ndarray):
        shape = source.shape
        if source.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
            raise ImageError(f"an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), got {source.dtype} {shape}")
        return Image.fromarray(source)
    return Image.open(Path(source))


def _upright(image: Image.Image, warnings: list[str], *, keep_exif: bool) -> tuple[Image.Image, bytes | None]:
    """The picture turned as its EXIF data say, and these data without the turn if they are kept and there are any."""
    try:
        image = ImageOps.exif_transpose(image)
        return image, (image.getexif().tobytes() if keep_exif and image.getexif() else None)
    except (SyntaxError, ValueError, OSError, struct.error) as error:
        warnings.append(f"the EXIF data are damaged and were ignored ({error})")
        return image, None


def _to_rgb(
    image: Image.Image, icc: bytes | None, warnings: list[str], *, keep_icc: bool
) -> tuple[Image.Image, bytes | None]:
    """Any mode -> RGB (or RGBA where it is so), in sRGB unless the profile is kept."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        if image.mode == "F":
            raise ImageError("the picture has floating point samples of unknown range; save it with 8 or 16 bits first")
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((np.clip(wide, 0, 65535) + 128) // 257).astype(np.uint8)).convert("RGB")
        warnings.append("16-bit samples were rounded to 8 bits")
        return image, None
    target = "RGBA" if image.mode == "RGBA" else "RGB"
    if icc is None or (keep_icc and image.mode in ("RGB", "RGBA")):
        return (image if image.mode == target else image.convert(target)), icc
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if "srgb" in (ImageCms.getProfileDescription(profile) or "").lower():
            return image.convert(target), None
        if image.mode not in ("RGB", "RGBA", "CMYK", "L"):
            image = image.convert(target)
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=target)
        if converted is None:
            raise ImageCms.PyCMSError("no conversion")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        warnings.append(f"the colour profile cannot be applied and was ignored ({error})")
        return image.convert(target), None
    warnings.append("colours were converted from the picture's profile to sRGB")
    return converted, None
