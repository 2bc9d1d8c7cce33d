"""Any picture a user has: modes, depths, orientation, animation, transparency, profiles; and what is not a picture."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import codling
from codling.codecs.cod import CoDCodec
from codling.errors import ConfigError, FormatError, ImageError
from codling.pictures import (
    Picture,
    decode_alpha,
    encode_alpha,
    from_image_array,
    load_picture,
    save_picture,
    to_image_array,
)
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


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_a_transparent_level_of_16_bits_is_alpha(mode: str) -> None:
    levels = Image.fromarray(np.array([[0, 500, 501, 40000, 65535]], np.uint16))
    image = Image.open(io.BytesIO(file_of(levels, "PNG", transparency=500)))
    if mode == "I":
        image = image.convert("I")
        image.info["transparency"] = 500
    kept = load_picture(image, keep="alpha")
    assert kept.rgb[0, :, 0].tolist() == [0, 2, 2, 156, 255]
    assert kept.alpha is not None
    assert kept.alpha[0].tolist() == [255, 0, 255, 255, 255]
    assert load_picture(image).rgb[0, :, 0].tolist() == [0, 255, 2, 156, 255]


def test_alpha_that_was_multiplied_in_is_taken_out() -> None:
    picture = load_picture(Image.new("LA", (2, 1), (200, 128)).convert("La"), keep="alpha")
    assert abs(int(picture.rgb[0, 0, 0]) - 200) <= 1
    assert picture.alpha is not None
    assert picture.alpha[0, 0] == 128


def test_what_cannot_be_converted_is_an_image_error() -> None:
    for mode, transparency in (("P", (1, 2, 3)), ("L", b"\0")):
        image = Image.new(mode, (3, 3))
        image.info["transparency"] = transparency
        with pytest.raises(ImageError, match=f"mode {mode} cannot be converted"):
            load_picture(image)


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


def srgb_but_for(changes: dict[bytes, bytes]) -> bytes:
    """The profile of sRGB, description and all, with these tags pointing to other data."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for tag, data in changes.items():
        entry = profile.index(tag)
        profile[entry + 4 : entry + 12] = struct.pack(">II", len(profile), len(data))
        profile += data
    profile[:4] = struct.pack(">I", len(profile))
    return bytes(profile)


def curve(levels: np.ndarray) -> dict[bytes, bytes]:
    data = b"curv" + bytes(4) + struct.pack(">I", len(levels)) + np.rint(levels * 65535).astype(">u2").tobytes()
    return {b"rTRC": data, b"gTRC": data, b"bTRC": data}


# Of Display P3, whose greys and purest colours have the levels that sRGB's have once they are clipped.
P3 = {b"rXYZ": (0.5151, 0.2412, -0.0011), b"gXYZ": (0.2919, 0.6922, 0.0419), b"bXYZ": (0.1572, 0.0666, 0.7841)}


def test_profiles_count_for_what_they_do_not_for_their_name() -> None:
    ramp = np.linspace(0, 1, 1024)
    wide = {
        tag: b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * value) for value in place))
        for tag, place in P3.items()
    }
    for changes in (curve(ramp), wide):
        profile = srgb_but_for(changes)
        assert "sRGB" in (ImageCms.getProfileDescription(io.BytesIO(profile)) or "")
        data = file_of(RGB, "PNG", icc_profile=profile)
        picture = load_picture(data)
        assert picture.icc is None
        assert "colours were converted" in picture.warnings[0]
        assert np.abs(picture.rgb.astype(int) - np.asarray(RGB)).max() > 5
        assert load_picture(data, keep="icc").icc == profile
    tabulated = curve(np.where(ramp <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4))
    for profile in (srgb_but_for({}), srgb_but_for(tabulated)):
        for image in (RGB, RGB.convert("L")):
            picture = load_picture(file_of(image, "PNG", icc_profile=profile))
            assert picture.warnings == ()
            assert np.array_equal(picture.rgb, np.asarray(image.convert("RGB")))


def linear_gray() -> bytes:
    """A profile of a gray whose levels are proportional to light."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"wtpt": white, b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, 256) + bytes(2)}
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">2I", place + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", place + len(body), bytes(4), 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGB"])
def test_gray_profiles_are_applied_to_gray_of_any_mode(mode: str) -> None:
    level = 255 if mode == "1" else 100
    image = Image.new("L", (8, 6), level).convert(mode)
    if mode == "LA":
        image.putalpha(Image.new("L", (8, 6), 128))
    picture = load_picture(file_of(image, "PNG", icc_profile=linear_gray()), keep="alpha")
    assert picture.warnings == ("colours were converted from the picture's profile to sRGB",)
    # 100 / 255 of the light is level 168 of sRGB.
    assert np.abs(picture.rgb.astype(int) - (255 if mode == "1" else 168)).max() <= 1
    assert (picture.alpha is None) == (mode != "LA")


def test_transparency_outlives_a_conversion_of_colours() -> None:
    image = RGB.convert("RGBA")
    alpha = np.random.default_rng(0).integers(0, 256, (24, 40), np.uint8)
    image.putalpha(Image.fromarray(alpha))
    linear = srgb_but_for(curve(np.linspace(0, 1, 1024)))
    laid = load_picture(file_of(image, "PNG", icc_profile=linear))
    colours = load_picture(file_of(RGB, "PNG", icc_profile=linear)).rgb.astype(float)
    share = alpha[..., None] / 255
    assert np.abs(laid.rgb - (colours * share + 255 * (1 - share))).max() < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_what_was_kept_is_saved_again(kind: str) -> None:
    profile, exif = srgb_but_for({}), Image.Exif()
    exif[0x010F] = "maker"
    image = save_picture(Picture(np.asarray(RGB), icc=profile, exif=exif.tobytes()))
    saved = Image.open(io.BytesIO(file_of(image, kind, **image.info)))
    assert saved.info["icc_profile"] == profile
    # What is left out is: EXIF may say where a picture was taken.
    assert 0x010F not in Image.open(io.BytesIO(file_of(image, kind, exif=b""))).getexif()
    assert saved.getexif()[0x010F] == "maker"


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
    with pytest.raises(ImageError, match="1,048,576 a side"):
        load_picture(np.zeros((1, 2**20 + 1), np.uint8))
    with pytest.raises(ImageError, match=r"a uint8 array, got BytesIO"):
        load_picture(io.BytesIO(whole))  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [RuntimeError, TypeError, NotImplementedError, KeyError, MemoryError])
def test_whatever_a_reader_stumbles_over_is_an_image_error(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged AVIF gives RuntimeError, TIFF TypeError, DDS NotImplementedError."""

    def stumble(self: Image.Image) -> None:
        raise error("no such frame")

    (tmp_path / "x.png").write_bytes(file_of(RGB, "PNG"))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", stumble)
    with pytest.raises(ImageError, match=r"damaged, cut, or of a kind.*no such frame"):
        load_picture(tmp_path / "x.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_are_image_errors(tmp_path: Path) -> None:
    """A byte changed anywhere: a picture comes out or an ImageError, and nothing else."""
    rng = np.random.default_rng(0)
    for kind in ("TIFF", "DDS", "AVIF"):
        whole = file_of(RGB, kind)
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[int(rng.integers(4, min(len(whole), 200)))] = int(rng.integers(256))
            (tmp_path / "x").write_bytes(damaged)
            try:
                load_picture(tmp_path / "x", max_pixels=10**4)
            except ImageError:
                continue


def test_errors_of_files_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    for path, error in ((tmp_path, IsADirectoryError), (tmp_path / "x.png" / "y", NotADirectoryError)):
        with pytest.raises(error):
            load_picture(path)


def test_pillows_own_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(ImageError, match=r"exceeds limit of 800 pixels.*PIL\.Image\.MAX_IMAGE_PIXELS and max_pixels"):
        load_picture(file_of(RGB, "PNG"), max_pixels=10**9)


def test_one_name_to_keep_is_one_name() -> None:
    rgba = RGB.convert("RGBA")
    rgba.putalpha(7)
    assert load_picture(rgba, keep="alpha").alpha is not None
    for keep in ("alhpa", ["icc", "alhpa"]):
        with pytest.raises(ConfigError, match=r"cannot keep 'alhpa'; did you mean alpha\?"):
            load_picture(rgba, keep=keep)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"cannot keep 3; known are alpha, exif, icc"):
        load_picture(rgba, keep=[3])  # type: ignore[list-item]


def test_8_bit_conversion_is_invertible_and_clips() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert np.array_equal(from_image_array(to_image_array(levels)), levels)
    assert from_image_array(np.full((3, 1, 1), 9.0)).tolist() == [[[255, 255, 255]]]
    assert from_image_array(np.full((3, 1, 1), -9.0)).tolist() == [[[0, 0, 0]]]


def test_stored_alpha_is_checked() -> None:
    alpha = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(decode_alpha(encode_alpha(alpha), height=3, width=4), alpha)
    for data, size in ((encode_alpha(alpha), (4, 3)), (b"junk", (3, 4)), (encode_alpha(alpha)[:40], (3, 4))):
        with pytest.raises(FormatError, match="the stored alpha is"):
            decode_alpha(data, height=size[0], width=size[1])
