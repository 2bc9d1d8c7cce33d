"""OSCAR as a codec: several rates, any size, and nothing at the decoder but the bytes and the model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import codling
from codling.bitstream.bits import packed_size
from codling.bitstream.container import CodecId, unpack
from codling.bitstream.index_tables import fit_index_model
from codling.codecs import oscar_pixel
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.cod import CoDCodec
from codling.codecs.oscar import GAIN_STEP, OscarCodec
from codling.codecs.oscar_pixel import PixelOscar
from codling.errors import ConfigError, RateError
from codling.models.rate_levels import OscarModel, RateLevel, Tokens
from tests.conftest import noise_picture
from tests.oscar_stand_in import Squares, index_tables, squares_codec
from tests.test_cli import run
from tests.tiny_oscar import tiny_oscar

SIZES = [(1, 1), (1, 17), (3, 200), (64, 64), (65, 130)]


def image_of(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture / np.float32(127.5) - 1).permute(2, 0, 1)[None]


def test_the_stand_in_keeps_the_contract(tiny_codec: CoDCodec) -> None:
    assert isinstance(Squares(), OscarModel)
    assert not isinstance(tiny_codec.model, OscarModel)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("gains", [False, True])
@pytest.mark.parametrize("tables", [False, True])
def test_any_size_at_every_level(height: int, width: int, gains: bool, tables: bool) -> None:
    codec = squares_codec(gains=gains, tables=tables)
    picture = noise_picture(height, width)
    for level in range(3):
        data = codling.encode(picture, model=codec, level=level)
        assert codling.encode(picture, model=codec, level=level) == data
        assert codling.decode(data, model=codec).size == (width, height)
        assert codling.info(data).codec == "oscar"
        assert unpack(data).codec is CodecId.OSCAR


@pytest.mark.parametrize("tables", [False, True])
def test_the_decoder_gets_the_tokens_that_the_encoder_made(tables: bool) -> None:
    codec, image = squares_codec(gains=True, tables=tables), image_of(noise_picture(96, 64))
    for level in range(3):
        made = codec.model.encode(image, level)
        payload = codec.encode(image, RateTarget(level=level))
        read, told = codec.unpack(payload, height=96, width=64)
        assert told == level
        assert torch.equal(read.indices, made.indices)
        assert made.log_gains is not None
        assert read.log_gains is not None
        assert float((read.log_gains - made.log_gains).abs().max()) <= GAIN_STEP / 2
        # The picture is that of the transmitted gains, not of the encoder's own.
        shown = codec.decode(payload, height=96, width=64, options=DecodeOptions())
        assert torch.equal(shown, codec.model.decode(read, level))
        assert not torch.equal(shown, codec.model.decode(made, level))


def test_the_payload_is_as_long_as_its_parts() -> None:
    image = image_of(noise_picture(60, 90))
    for gains in (False, True):
        codec = squares_codec(gains=gains, tables=False)
        for level, (count, bits) in enumerate([(2 * 3, 3), (4 * 6, 4), (8 * 12, 4)]):
            wanted = 1 + 3 * gains + packed_size(count, bits)
            assert len(codec.encode(image, RateTarget(level=level))) == wanted


def test_tables_save_bytes_on_pictures_like_theirs() -> None:
    image = image_of(noise_picture(256, 256).repeat(2, 0).repeat(2, 1))
    raw, coded = (squares_codec(tables=tables).encode(image, RateTarget(level=2)) for tables in (False, True))
    assert len(coded) < 0.8 * len(raw)


@pytest.mark.parametrize("tables", [False, True])
def test_a_budget_takes_the_highest_level_that_fits(tables: bool) -> None:
    codec, image = squares_codec(tables=tables, gains=True), image_of(noise_picture(128, 128))
    sizes = [len(codec.encode(image, RateTarget(level=level))) for level in range(3)]
    assert sizes == sorted(set(sizes))
    for budget in range(sizes[0], sizes[-1] + 2):
        highest = max(level for level, size in enumerate(sizes) if size <= budget)
        assert len(codec.encode(image, RateTarget(max_bytes=budget))) == sizes[highest]
    with pytest.raises(RateError, match=rf"at least {sizes[0]} for this picture \(level 0\); ask for 2 bytes more"):
        codec.encode(image, RateTarget(max_bytes=sizes[0] - 2))
    assert len(codec.encode(image, RateTarget())) == sizes[-1]


def test_levels_too_long_for_the_budget_cost_no_network() -> None:
    class Counting(Squares):
        encoded: tuple[int, ...] = ()

        def encode(self, image: Tensor, level: int) -> Tokens:
            self.encoded += (level,)
            return super().encode(image, level)

    model = Counting()
    codec = OscarCodec(model, name="counting", model_id=1)
    codec.encode(image_of(noise_picture(64, 64)), RateTarget(max_bytes=3))
    assert model.encoded == (0,)
    with pytest.raises(RateError):
        codec.encode(image_of(noise_picture(64, 64)), RateTarget(max_bytes=2))
    assert model.encoded == (0,)


def test_bits_a_pixel_and_levels_of_files(tmp_path: Path) -> None:
    codec, picture = squares_codec(), noise_picture(128, 128)
    file = codling.encode(picture, model=codec, level=1)
    assert codling.encode(picture, model=codec, bpp=codling.info(file).bpp) == file
    assert codling.encode(picture, model=codec, max_bytes=len(file)) == file
    for given in ({"level": 3}, {"level": -1}):
        with pytest.raises(RateError, match=r"levels 0 to 2, got level"):
            codling.encode(picture, model=codec, **given)
    with pytest.raises(RateError, match="one rate target"):
        codling.encode(picture, model=codec, level=1, max_bytes=100)
    for target in (RateTarget(psnr=20.0), RateTarget(noise_level=300)):
        with pytest.raises(RateError, match="levels 0 to 2"):
            codec.encode(image_of(picture), target)


def test_what_is_padded_lies_right_and_below() -> None:
    """The picture's own corner is the top left one, so what comes back lies where it was."""
    picture = np.zeros((65, 130, 3), np.uint8)
    picture[:8, :8] = 255
    picture[40:48, 80:88] = 136
    found = np.asarray(codling.decode(codling.encode(picture, model=squares_codec(), level=2), model=squares_codec()))
    assert np.array_equal(found, picture)


def test_codecs_without_levels_say_so(tiny_codec: CoDCodec, tmp_path: Path) -> None:
    with pytest.raises(RateError, match="one rate a picture"):
        codling.encode(noise_picture(20, 20), model=tiny_codec, level=1)
    Image.fromarray(noise_picture(20, 20)).save(tmp_path / "a.png")
    done = run("encode", tmp_path / "a.png", "--model", "linear", "--level", 1)
    assert done.returncode == 1
    assert "has any rate and no levels" in done.stderr


def test_choices_that_one_step_does_not_have_are_refused() -> None:
    codec = squares_codec()
    data = codling.encode(noise_picture(40, 40), model=codec)
    for options, message in [
        ({"steps": 4}, "one step"),
        ({"guidance": 3.0}, "one step"),
        ({"sampler": "euler"}, "one step"),
        ({"score_scale": 1.2}, "no score"),
    ]:
        with pytest.raises(ConfigError, match=message):
            codling.decode(data, model=codec, **options)


def test_the_noise_that_a_level_adds_is_no_choice_of_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn once for all, so a seed changes nothing; another draw would change the picture."""
    codec = OscarCodec(PixelOscar(tiny_oscar()), name="tiny", model_id=1)
    data = codling.encode(noise_picture(40, 40), model=codec, level=0)
    once, again = (np.asarray(codling.decode(data, model=codec, steps=1, seed=seed)) for seed in (0, 5))
    assert np.array_equal(once, again)
    monkeypatch.setattr(oscar_pixel, "GRAIN_STREAM", oscar_pixel.GRAIN_STREAM - 1)
    assert not np.array_equal(np.asarray(codling.decode(data, model=codec)), once)


def test_a_budget_takes_a_lower_level_where_gains_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = squares_codec(gains=True)
    picture, latent = noise_picture(40, 40), codec.model.encode

    def encode(image: torch.Tensor, level: int) -> Tokens:
        tokens = latent(image, level)
        return tokens if level < 2 else Tokens(tokens.indices, torch.full((1, 3), 9.0))

    monkeypatch.setattr(codec.model, "encode", encode)
    with pytest.raises(RateError, match="wanted between"):
        codling.encode(picture, model=codec, level=2)
    data = codling.encode(picture, model=codec, max_bytes=1000)
    assert data == codling.encode(picture, model=codec, level=1)


def test_gains_out_of_range_or_of_another_number_are_refused() -> None:
    codec = squares_codec(gains=True)
    indices = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    for gain in (9.0, -9.0, float("nan"), float("inf")):
        with pytest.raises(RateError, match="wanted between"):
            codec.pack(Tokens(indices, torch.full((1, 3), gain)), 0)
    for gains in (None, torch.zeros(1, 4)):
        with pytest.raises(ConfigError, match="channel gains"):
            codec.pack(Tokens(indices, gains), 0)


def test_tables_must_fit_the_levels() -> None:
    with pytest.raises(ConfigError, match="2 index tables for 3 levels"):
        OscarCodec(Squares(), name="x", model_id=1, index_models=index_tables()[:2])


def test_more_levels_than_a_byte_can_name() -> None:
    class Many(Squares):
        levels = (RateLevel(32, 6, 0.5),) * 128

    class TooMany(Squares):
        levels = (RateLevel(32, 6, 0.5),) * 129

    codec, image = OscarCodec(Many(), name="x", model_id=1), image_of(noise_picture(40, 40))
    assert codec.unpack(codec.encode(image, RateTarget(level=127)), height=40, width=40)[1] == 127
    with pytest.raises(ConfigError, match=r"129 levels.*128 at most"):
        OscarCodec(TooMany(), name="x", model_id=1)


def test_what_is_missing_is_what_the_file_needs() -> None:
    """A budget that grows by what the error asks for is met, header and all."""
    codec, picture = squares_codec(), noise_picture(128, 128)
    smallest = len(codling.encode(picture, model=codec, level=0))
    with pytest.raises(RateError, match="ask for 3 bytes more"):
        codling.encode(picture, model=codec, max_bytes=smallest - 3)
    assert len(codling.encode(picture, model=codec, max_bytes=smallest)) == smallest


def test_a_level_of_depth_has_all_its_maps_in_the_file() -> None:
    """Two maps a place: raw they take twice the bits; coded, each has the tables of the level that adds it."""

    class Deep(Squares):
        levels = (RateLevel(32, 6, 0.3), RateLevel(32, 6, 0.5, depth=2))

    maps = torch.randint(0, 6, (1, 2, 4, 6), generator=torch.Generator().manual_seed(0))
    raw = OscarCodec(Deep(), name="deep", model_id=1)
    tables = fit_index_model([maps[0, 0].numpy()], 6), fit_index_model([maps[0, 1].numpy()] * 9, 6)
    coded = OscarCodec(Deep(), name="deep", model_id=1, index_models=tables)
    assert len(raw.pack(Tokens(maps), 1)) == 1 + 2 * 4 * 6 * 3 // 8
    assert len(coded.pack(Tokens(maps), 1)) < len(raw.pack(Tokens(maps), 1))
    for codec in (raw, coded):
        read, level = codec.unpack(codec.pack(Tokens(maps), 1), height=120, width=190)
        assert level == 1
        assert torch.equal(read.indices, maps)
    # Exchanged tables would cost more: each map is coded with its own.
    exchanged = OscarCodec(Deep(), name="deep", model_id=1, index_models=tables[::-1])
    assert len(exchanged.pack(Tokens(maps), 1)) > len(coded.pack(Tokens(maps), 1))
