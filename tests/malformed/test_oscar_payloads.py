"""Malformed OSCAR payloads: a FormatError before any network runs."""

import numpy as np
import pytest
import torch

import codling
from codling.bitstream.container import pack, unpack
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.oscar import OscarCodec
from codling.errors import FormatError
from tests.conftest import noise_picture
from tests.oscar_stand_in import Squares, squares_codec


def refused(codec: OscarCodec, payload: bytes) -> bool:
    """Whether a payload of a 70 x 40 picture is a FormatError; a picture must have the right size."""
    assert isinstance(codec.model, Squares)
    before = codec.model.decoded
    try:
        image = codec.decode(payload, height=40, width=70, options=DecodeOptions())
    except FormatError:
        assert codec.model.decoded == before
        return True
    assert image.shape == (1, 3, 40, 70)
    return False


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("gains", [False, True])
def test_raw_payloads_have_one_length(gains: bool, tables: bool) -> None:
    image = torch.from_numpy(noise_picture(40, 70) / np.float32(127.5) - 1).permute(2, 0, 1)[None]
    codec = squares_codec(gains=gains, tables=tables)
    plain = squares_codec(gains=gains, tables=False)
    for level in range(3):
        payload = plain.encode(image, RateTarget(level=level))
        assert not refused(codec, payload)
        assert all(refused(codec, payload[:length]) for length in range(len(payload)))
        assert refused(codec, payload + b"\0")


def test_values_out_of_range() -> None:
    codec = squares_codec(tables=False)
    assert refused(codec, bytes([6, 0, 0, 0]))  # level 3 of 0 to 2
    assert refused(codec, bytes([255]))
    assert not refused(codec, b"\0\xb6\xdb\x40")  # six times 101, index 5
    assert refused(codec, b"\0\xdb\x6d\x80")  # six times 110, index 6 of a codebook of 6
    assert refused(codec, b"\0\0\0\1")  # padding bits that are not zero
    assert refused(codec, b"\1\0\0\0")  # coded, but the model has no tables


def test_coded_indices_are_never_longer_than_raw_ones() -> None:
    codec = squares_codec()
    assert refused(codec, b"\1" + b"\x55" * 40)


def test_random_payloads_are_refused_or_decode() -> None:
    codec, rng, outcomes = squares_codec(gains=True), np.random.default_rng(0), set()
    for _ in range(400):
        payload = bytes([int(rng.integers(0, 8))]) + rng.bytes(int(rng.integers(0, 12)))
        outcomes.add(refused(codec, payload))
    assert outcomes == {True, False}


def test_every_truncation_and_corruption_of_a_file_is_refused() -> None:
    codec = squares_codec(gains=True)
    valid = codling.encode(noise_picture(40, 70), model=codec)
    for length in range(len(valid)):
        with pytest.raises(FormatError):
            codling.decode(valid[:length], model=codec)
    with pytest.raises(FormatError, match="checksum"):
        codling.decode(valid + b"\0", model=codec)
    stream = unpack(valid)
    assert unpack(pack(stream)) == stream
