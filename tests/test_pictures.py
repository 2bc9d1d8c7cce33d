"""Any picture a user has: modes, depths, orientation, animation, transparency, profiles; and what is not a picture."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import codling
from codling.codecs.cod import CoDCodec
from codling.errors import ImageError
from codling.pictures import decode_alpha, encode_alpha, from_image_array, load_picture, to_image_array
from tests.conftest import noise_picture

RGB = Image.fromarray(noise_picture(24, 40))


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(RGB.convert("L")).astype(np.uint16) * 257)
    else:
        image = RGB.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", RGB.size, (128, 128, 128))
    picture = load_picture(image)
    assert picture.rgb.shape == (24, 40, 3)
    assert picture.rgb.dtype == np.uint8
    assert bool(picture.warnings) == (mode == "I;16")


def test_sixteen_bits_are_rounded_not_cut() -> None:
    levels = np.array([[0, 127, 128, 385, 386, 65407, 65535]], np.uint16)
    picture = load_picture(file_of(Image.fromarray(levels), "PNG"))
    assert picture.rgb[0, :, 0].tolist() == [0, 0, 0, 1, 2, 255, 255]


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees
    picture = load_picture(file_of(RGB, "PNG", exif=exif))
    assert np.array_equal(picture.rgb, np.asarray(RGB.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_ignored_with_a_warning(kind: str) -> None:
    data = file_of(RGB, kind, exif=b"Exif\0\0no such thing")
    picture = load_picture(data, keep=frozenset({"exif"}))
    assert picture.rgb.shape == (24, 40, 3)
    assert picture.exif is None
    assert "EXIF data are damaged" in "".join(picture.warnings)
    assert np.array_equal(load_picture(data).rgb, picture.rgb)


def test_animations_give_their_first_frame_with_a_warning() -> None:
    frames = [Image.new("RGB", (10, 8), colour) for colour in ("red", "green", "blue")]
    picture = load_picture(file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    assert picture.rgb[0, 0].tolist() == [255, 0, 0]
    assert "3 frames" in picture.warnings[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette"])
def test_transparency_is_laid_on_white_or_kept(mode: str) -> None:
    image = Image.new("RGBA", (9, 7), (0, 0, 255, 255))
    image.paste((255, 0, 0, 0), (0, 0, 4, 7))
    data = file_of(image.quantize(), "PNG") if mode == "palette" else file_of(image.convert(mode), "PNG")
    picture = load_picture(data)
    assert picture.alpha is None
    assert picture.rgb[0, 0].tolist() == [255, 255, 255]
    assert "transparent" in picture.warnings[0]
    kept = load_picture(data, keep=frozenset({"alpha"}))
    assert kept.warnings == ()
    assert kept.alpha is not None
    assert kept.alpha[0, :5].tolist() == [0, 0, 0, 0, 255]


def test_opaque_alpha_is_no_transparency() -> None:
    picture = load_picture(RGB.convert("RGBA"), keep=frozenset({"alpha"}))
    assert picture.alpha is None
    assert picture.warnings == ()


def test_alpha_icc_and_exif_travel_in_the_file(tiny_codec: CoDCodec) -> None:
    image = RGB.convert("RGBA")
    alpha = np.random.default_rng(0).integers(0, 256, (24, 40), np.uint8)
    image.putalpha(Image.fromarray(alpha))
    exif = Image.Exif()
    exif[0x010F] = "maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = file_of(image, "PNG", exif=exif, icc_profile=profile)
    data = codling.encode(source, model=tiny_codec, keep=["alpha", "icc", "exif"])
    decoded = codling.decode(data, model=tiny_codec)
    assert np.array_equal(np.asarray(decoded.getchannel("A")), alpha)
    assert decoded.info["icc_profile"] == profile
    assert b"maker" in decoded.info["exif"]
    assert set(codling.info(data).sections) == {"alpha", "icc", "exif"}
    with pytest.warns(codling.PictureWarning, match="laid on white"):
        plain = codling.encode(source, model=tiny_codec)
    assert codling.info(plain).sections == {}
    assert len(plain) < len(data)


def test_profiles_are_applied_or_said_to_be_broken() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for profile, word in ((b"not a profile", "ignored"), (lab, "profile")):
        picture = load_picture(file_of(RGB, "PNG", icc_profile=profile))
        assert picture.icc is None
        assert word in picture.warnings[0]


def test_arrays_and_paths(tmp_path: Path) -> None:
    RGB.save(tmp_path / "x.png")
    expected = np.asarray(RGB)
    for source in (expected, tmp_path / "x.png", str(tmp_path / "x.png"), (tmp_path / "x.png").read_bytes(), RGB):
        assert np.array_equal(load_picture(source).rgb, expected)
    assert load_picture(expected[..., 0]).rgb.shape == (24, 40, 3)


def test_what_is_not_a_picture(tmp_path: Path) -> None:
    whole = file_of(RGB, "PNG")
    for data in (b"", b"hello", whole[: len(whole) // 2], whole[:30]):
        with pytest.raises(ImageError):
            load_picture(data)
    with pytest.raises(FileNotFoundError):
        load_picture(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="uint8"):
        load_picture(np.zeros((3, 4, 3)))
    with pytest.raises(ImageError, match="uint8"):
        load_picture(np.zeros((3, 0, 3), np.uint8))
    with pytest.raises(ImageError, match="floating point"):
        load_picture(Image.fromarray(np.zeros((3, 4), np.float32)))
    with pytest.raises(ImageError, match="more than the limit"):
        load_picture(RGB, max_pixels=900)


def test_8_bit_conversion_is_invertible_and_clips() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert np.array_equal(from_image_array(to_image_array(levels)), levels)
    assert from_image_array(np.full((3, 1, 1), 9.0)).tolist() == [[[255, 255, 255]]]
    assert from_image_array(np.full((3, 1, 1), -9.0)).tolist() == [[[0, 0, 0]]]


def test_stored_alpha_is_checked() -> None:
    alpha = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(decode_alpha(encode_alpha(alpha), height=3, width=4), alpha)
    for data, size in ((encode_alpha(alpha), (4, 3)), (b"junk", (3, 4)), (encode_alpha(alpha)[:40], (3, 4))):
        with pytest.raises(ImageError):
            decode_alpha(data, height=size[0], width=size[1])
