"""Many pictures at once: the same files and pictures as one by one, with fewer calls of the network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import codling
from codling.bitstream.container import pack, unpack
from codling.codecs.cod import CoDCodec
from codling.codecs.oscar import OscarCodec
from codling.codecs.oscar_pixel import PixelOscar
from codling.errors import ConfigError, FormatError, ImageError, ModelError, RateError
from codling.evaluation.bench import batch_seconds
from codling.models.oscar import Oscar
from tests.conftest import noise_picture
from tests.oscar_stand_in import Squares, index_tables, squares_codec
from tests.tiny_oscar import tiny_oscar

SIZES = [(40, 33), (1, 1), (40, 33), (70, 150), (33, 40), (1, 1), (40, 33)]


def pictures() -> list[np.ndarray]:
    return [noise_picture(*size, seed=seed) for seed, size in enumerate(SIZES)]


def network_codec(network: Oscar) -> OscarCodec:
    return OscarCodec(PixelOscar(network), name="tiny", model_id=1)


@pytest.mark.parametrize("asked", [{"level": 1}, {"level": 0}, {"max_bytes": 60}, {"bpp": 8.0}, {}])
@pytest.mark.parametrize(("gains", "tables"), [(False, True), (True, False)])
def test_files_are_those_of_one_by_one(asked: dict[str, float], gains: bool, tables: bool) -> None:
    model = Squares(gains=gains)
    codec = OscarCodec(
        model, name="squares", model_id=1, index_models=index_tables() if tables else (), gains=3 if gains else 0
    )
    # In bits a pixel, one pixel has no room for a header.
    given = [picture for picture in pictures() if picture.size > 3 or "bpp" not in asked]
    files = codling.encode_batch(given, model=codec, **asked)  # type: ignore[arg-type]
    assert files == [codling.encode(picture, model=codec, **asked) for picture in given]  # type: ignore[arg-type]
    wanted = [codling.decode(data, model=codec) for data in files]
    model.decoded = 0
    found = codling.decode_batch(files, model=codec)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    levels = {(picture.shape, codec.unpack(unpack(data).payload, height=picture.shape[0], width=picture.shape[1])[1])
              for data, picture in zip(files, given, strict=True)}  # fmt: skip
    assert model.decoded == len(levels) < len(files)


def test_networks_decode_batches_whole_and_in_tiles() -> None:
    """70 x 150 px are more than the network's tile of 64, the others are less."""
    codec = network_codec(tiny_oscar())
    for level in range(len(codec.model.levels)):
        files = codling.encode_batch(pictures(), model=codec, level=level)
        assert files == [codling.encode(picture, model=codec, level=level) for picture in pictures()]
        for data, found in zip(files, codling.decode_batch(files, model=codec), strict=True):
            wanted = np.asarray(codling.decode(data, model=codec)).astype(int)
            assert np.abs(wanted - np.asarray(found)).max() <= 1


def test_files_of_several_levels_are_decoded_in_their_order() -> None:
    codec, picture = network_codec(tiny_oscar()), noise_picture(50, 60)
    levels = [2, 0, 1, 2, 0]
    files = [codling.encode(picture, model=codec, level=level) for level in levels]
    found = [np.asarray(image) for image in codling.decode_batch(files, model=codec)]
    for n, level in enumerate(levels):
        assert np.array_equal(found[n], found[levels.index(level)])
    assert not np.array_equal(found[0], found[1])
    assert codling.decode_batch([], model=codec) == []
    assert codling.encode_batch([], model=codec) == []


def test_what_comes_with_a_picture_stays_with_it() -> None:
    rgba = Image.fromarray(np.dstack([noise_picture(20, 30), np.full((20, 30), 90, np.uint8)]))
    given, codec = [noise_picture(20, 30), rgba], squares_codec()
    with pytest.warns(codling.PictureWarning, match="partly transparent"):
        codling.encode_batch(given, model=codec)
    files = codling.encode_batch(given, model=codec, keep=["alpha"])
    assert codling.encode_batch(given, model=codec, keep="alpha") == files
    modes = [image.mode for image in codling.decode_batch(files, model=codec)]
    assert modes == ["RGB", "RGBA"]


def test_files_are_given_by_path_too(tmp_path: Path) -> None:
    codec = squares_codec()
    (data,) = codling.encode_batch([noise_picture(20, 30)], model=codec)
    (tmp_path / "x.roe").write_bytes(data)
    found = codling.decode_batch([data, tmp_path / "x.roe"], model=codec)
    assert np.array_equal(found[0], found[1])


def test_what_cannot_be_says_so(tiny_codec: CoDCodec, tiny_directory: Path) -> None:
    codec, given = squares_codec(), [noise_picture(40, 40, seed=n) for n in range(3)]
    with pytest.raises(ConfigError, match=r"only OSCAR models like oscar-s take several pictures at once"):
        codling.encode_batch(given, model=tiny_codec)
    with pytest.raises(ConfigError, match="encode and decode one by one"):
        codling.decode_batch([codling.encode(given[0], model=tiny_codec)], model=tiny_codec)
    files = codling.encode_batch(given, model=codec)
    too_few = codling.info(files[0]).header_bytes + 1
    with pytest.raises(RateError, match=r"picture 1 of 3: 1 bytes are left .* needs at least"):
        codling.encode_batch(given, model=codec, max_bytes=too_few)
    with pytest.raises(ImageError, match="picture 2 of 2: not a picture"):
        codling.encode_batch([given[0], b"nothing"], model=codec)
    other = codling.encode(given[0], model=OscarCodec(Squares(), name="other", model_id=77))
    with pytest.raises(ModelError, match="decode it with the model that made it"):
        codling.decode_batch([*files, other], model=codec)
    model = codec.model
    assert isinstance(model, Squares)
    model.decoded = 0
    damaged = files[1][:-3]
    with pytest.raises(FormatError, match="file 2 of 2: "):
        codling.decode_batch([files[0], damaged], model=codec)
    # Also where it is the payload that cannot be, of a picture of another size.
    stream = unpack(codling.encode(noise_picture(40, 72), model=codec))
    claims_more = pack(replace(stream, payload=b"\xff" + stream.payload[1:]))
    with pytest.raises(FormatError, match="file 2 of 2: the payload claims level"):
        codling.decode_batch([files[0], claims_more], model=codec)
    assert model.decoded == 0


def test_both_ways_are_timed() -> None:
    encoding, decoding = batch_seconds(squares_codec(), noise_picture(64, 64), 3)
    assert encoding > 0
    assert decoding > 0
