"""What encode, decode, info and preview take, and how they refuse what they do not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import codling
from codling.codecs.cod import CoDCodec
from codling.codecs.diffc import DiffCCodec
from codling.errors import ConfigError, FormatError, ImageError, ModelError, RateError
from tests.conftest import noise_picture


@pytest.fixture(scope="module")
def linear() -> DiffCCodec:
    codec = codling.load("linear", device="cpu")
    assert isinstance(codec, DiffCCodec)
    return codec


def test_files_are_given_by_their_bytes_or_their_path(tiny_codec: CoDCodec, linear: DiffCCodec, tmp_path: Path) -> None:
    data = codling.encode(noise_picture(20, 30), model=tiny_codec)
    growing = codling.encode(noise_picture(20, 30), model=linear, max_bytes=40)
    path = tmp_path / "x.roe"
    path.write_bytes(data)
    (tmp_path / "growing.roe").write_bytes(growing)
    wanted = np.asarray(codling.decode(data, model=tiny_codec))
    for given in (path, str(path), bytearray(data), memoryview(data)):
        assert codling.info(given) == codling.info(data)  # type: ignore[arg-type]
        assert np.array_equal(codling.decode(given, model=tiny_codec), wanted)  # type: ignore[arg-type]
    used = [size for size, _ in codling.preview(tmp_path / "growing.roe", model=linear)]
    assert used == [size for size, _ in codling.preview(growing, model=linear)]


def test_other_files_are_refused(tmp_path: Path) -> None:
    for function in (codling.info, codling.decode, codling.preview):
        with pytest.raises(FileNotFoundError):
            function(tmp_path / "missing.roe")
        with pytest.raises(FormatError, match=r"its bytes .* or its path, got BytesIO"):
            function(io.BytesIO())  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="got int"):
        codling.decode_batch([3])  # type: ignore[list-item]
    with pytest.raises(FileNotFoundError):
        codling.decode_batch([tmp_path / "missing.roe"])


def test_other_pictures_are_refused(tiny_codec: CoDCodec) -> None:
    for given in (io.BytesIO(), None, [1, 2]):
        with pytest.raises(ImageError, match=rf"a picture is a path.*got {type(given).__name__}"):
            codling.encode(given, model=tiny_codec)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"bpp": float("nan")}, "bpp must be a finite number above 0, got nan"),
        ({"bpp": float("inf")}, "bpp must be a finite number above 0, got inf"),
        ({"bpp": -0.5}, "bpp must be a finite number above 0, got -0.5"),
        ({"bpp": "0.5"}, "bpp must be a finite number above 0, got '0.5'"),
        ({"psnr": float("nan")}, "psnr must be a finite number above 0, got nan"),
        ({"max_bytes": 100.0}, "max_bytes must be a whole number, got 100.0"),
        ({"max_bytes": "100"}, "max_bytes must be a whole number, got '100'"),
        ({"noise_level": 500.0}, "noise_level must be a whole number, got 500.0"),
        ({"level": 1.0}, "level must be a whole number, got 1.0"),
    ],
)
def test_rates_are_numbers(asked: dict[str, float], message: str, linear: DiffCCodec) -> None:
    with pytest.raises(RateError, match=message):
        codling.encode(noise_picture(20, 30), model=linear, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "4"}, "steps must be a whole number, got '4'"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"guidance": "1.5"}, "guidance must be a number, got '1.5'"),
        ({"score_scale": None}, "score_scale must be a number, got None"),
        ({"finish": codling.load}, "finish must be the name or directory of an OSCAR .* got function"),
    ],
)
def test_options_are_of_their_kind(options: dict[str, object], message: str, tiny_codec: CoDCodec) -> None:
    data = codling.encode(noise_picture(20, 30), model=tiny_codec)
    with pytest.raises(ConfigError, match=message):
        codling.decode(data, model=tiny_codec, **options)  # type: ignore[arg-type]


def test_one_rate_at_most(linear: DiffCCodec) -> None:
    with pytest.raises(RateError, match="at most, got bpp and psnr"):
        codling.encode(noise_picture(20, 30), model=linear, bpp=0.5, psnr=20.0)


def test_a_sampler_of_one_step_is_refused(linear: DiffCCodec) -> None:
    data = codling.encode(noise_picture(20, 30), model=linear, max_bytes=40)
    with pytest.raises(ConfigError, match="a sampler changes nothing in one step"):
        codling.decode(data, model=linear, sampler="heun")
    assert codling.decode(data, model=linear, sampler="heun", steps=2).size == (30, 20)


def test_bytes_of_any_kind_are_a_picture(tiny_codec: CoDCodec) -> None:
    source = io.BytesIO()
    Image.fromarray(noise_picture(20, 30)).save(source, "PNG")
    wanted = codling.encode(source.getvalue(), model=tiny_codec)
    for given in (bytearray(source.getvalue()), source.getbuffer()):
        assert codling.encode(given, model=tiny_codec) == wanted
    with pytest.raises(ImageError, match="of no format that Pillow knows"):
        codling.encode(b"nothing", model=tiny_codec)


def test_numbers_of_numpy_are_numbers(linear: DiffCCodec) -> None:
    picture = noise_picture(20, 30)
    wanted = codling.encode(picture, model=linear, max_bytes=40)
    assert codling.encode(picture, model=linear, max_bytes=np.int64(40)) == wanted  # type: ignore[arg-type]
    assert codling.encode(picture, model=linear, bpp=np.float32(320 / 600)) == wanted


def test_keep_takes_one_name(tiny_codec: CoDCodec) -> None:
    rgba = Image.fromarray(np.dstack([noise_picture(20, 30), np.full((20, 30), 90, np.uint8)]))
    data = codling.encode(rgba, model=tiny_codec, keep="alpha")
    assert set(codling.info(data).sections) == {"alpha"}
    with pytest.raises(ConfigError, match=r"cannot keep 'alpa'; did you mean alpha\?"):
        codling.encode(rgba, model=tiny_codec, keep="alpa")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp"])
def test_pictures_can_be_saved_with_what_was_kept(name: str, tiny_codec: CoDCodec, tmp_path: Path) -> None:
    exif, source = Image.Exif(), io.BytesIO()
    exif[0x010F] = "maker"
    Image.fromarray(noise_picture(20, 30)).save(source, "PNG", exif=exif)
    data = codling.encode(source.getvalue(), model=tiny_codec, keep="exif")
    picture = codling.decode(data, model=tiny_codec)
    picture.save(tmp_path / name, exif=picture.info["exif"])
    assert Image.open(tmp_path / name).getexif()[0x010F] == "maker"


def test_previews_say_at_once_what_is_wrong(tiny_codec: CoDCodec, linear: DiffCCodec) -> None:
    growing = codling.encode(noise_picture(20, 30), model=linear, max_bytes=40)
    with pytest.raises(FormatError, match=r"not a \.roe file"):
        codling.preview(b"")
    with pytest.raises(ConfigError, match="only progressive files"):
        codling.preview(codling.encode(noise_picture(20, 30), model=tiny_codec), model=tiny_codec)
    with pytest.raises(ModelError):
        codling.preview(growing, model=tiny_codec)


def test_reserved_codecs_cannot_be_loaded() -> None:
    with pytest.raises(ConfigError, match="unknown codec 'one-step'"):
        codling.load("cod-xs", codec="one-step")


@pytest.mark.parametrize("codec", ["cod", "diffc", "oscar"])
def test_a_codec_alone_is_enough(codec: str) -> None:
    rate = {"max_bytes": 90} if codec == "diffc" else {}
    said = codling.info(codling.encode(noise_picture(40, 50), codec=codec, **rate))
    assert (said.codec, said.model) == (codec, {"cod": "cod-xs", "diffc": "diffc-xs", "oscar": "oscar-s"}[codec])
