"""Malformed files: a FormatError, quickly, in bounded memory, and nothing else."""

import resource
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

import codling
from codling.bitstream.container import CodecId, Reader, SectionTag, Stream, checksum, pack, unpack, varint
from codling.bitstream.indices import Mode
from codling.codecs.cod import CoDCodec
from codling.errors import FormatError
from tests.conftest import noise_picture


@pytest.fixture(scope="module")
def valid(tiny_codec: CoDCodec) -> bytes:
    return codling.encode(noise_picture(40, 70), model=tiny_codec)


def attempt(data: bytes, codec: CoDCodec) -> bool:
    """Decode; True if a picture came out, False on FormatError; anything else fails the test."""
    begin = time.perf_counter()
    try:
        image = codling.decode(data, model=codec, steps=1)
    except FormatError:
        assert time.perf_counter() - begin < 1.0
        return False
    assert image.size == (70, 40)
    return True


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a .roe file"),
        (b"\xb7", "not a .roe file"),
        (b"\x89PNG\r\n\x1a\n", "not a .roe file"),
        (b"\xb7r", "ends inside its version"),
        (b"\xb7r\xe0", "update codling"),
        (b"\xb7r\x1c", "update codling"),
        (b"\xb7r\x08\0\0\0\1\1" + checksum(b"\xb7r\x08\0\0\0\1\1", b""), "codec number 2 is unknown"),
    ],
)
def test_not_a_stream(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        codling.decode(data)
    with pytest.raises(FormatError, match=message):
        codling.info(data)


def test_every_truncation_is_refused(valid: bytes, tiny_codec: CoDCodec) -> None:
    for length in range(len(valid)):
        assert not attempt(valid[:length], tiny_codec)


def test_trailing_bytes_are_refused(valid: bytes, tiny_codec: CoDCodec) -> None:
    for extra in (b"\0", b"\xff", valid):
        assert not attempt(valid + extra, tiny_codec)


def test_every_single_byte_corruption_is_refused(valid: bytes, tiny_codec: CoDCodec) -> None:
    """10,000 of them; a 16-bit checksum catches every error burst of up to 16 bits, so none may pass."""
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        place, change = int(rng.integers(len(valid))), int(rng.integers(1, 256))
        damaged = bytearray(valid)
        damaged[place] ^= change
        assert not attempt(bytes(damaged), tiny_codec)


def test_random_bytes_behind_a_valid_start(valid: bytes, tiny_codec: CoDCodec) -> None:
    rng = np.random.default_rng(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    passed = 0
    for trial in range(10_000):
        start = valid[: int(rng.integers(2, 8))] if trial % 2 else valid[:2]
        try:
            unpack(start + rng.bytes(int(rng.integers(0, 200))))
            passed += 1
        except FormatError:
            pass
    assert passed <= 3  # a 16-bit checksum holds by chance once in 65,536
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kilobytes


def test_random_payloads_with_a_right_checksum(valid: bytes, tiny_codec: CoDCodec) -> None:
    """What the checksum lets through decodes to a picture or is refused by the payload's own rules."""
    stream = unpack(valid)
    rng = np.random.default_rng(2)
    outcomes = set()
    for _ in range(300):
        payload = bytes([int(rng.integers(0, 3))]) + rng.bytes(int(rng.integers(0, 12)))
        forged = Stream(stream.codec, stream.model_id, stream.width, stream.height, payload)
        outcomes.add(attempt(pack(forged), tiny_codec))
    assert outcomes == {True, False}


def test_bytes_after_coded_indices_are_refused(tiny_codec: CoDCodec) -> None:
    indices = torch.randint(12, (7, 9), generator=torch.Generator().manual_seed(0)) // 4
    payload = tiny_codec.encode_indices(indices)
    assert payload[0] == Mode.CODED and len(payload) < 40
    assert torch.equal(tiny_codec.decode_indices(payload, height=112, width=144)[0], indices)
    for more in (b"\0", b"\1", b"more"):
        with pytest.raises(FormatError, match="follow the coded indices"):
            tiny_codec.decode_indices(payload + more, height=112, width=144)


@pytest.mark.parametrize(("width", "height"), [(2**31, 2**31), (2**14, 2**13), (2**34, 1), (1, 2**26), (2**20 + 1, 1)])
def test_forged_sizes_are_refused_at_once(width: int, height: int, tiny_codec: CoDCodec) -> None:
    data = pack(Stream(CodecId.COD, tiny_codec.model_id, width, height, b"\0"))
    begin = time.perf_counter()
    with pytest.raises(FormatError, match="the header claims"):
        codling.decode(data, model=tiny_codec)
    assert time.perf_counter() - begin < 0.1


@pytest.mark.parametrize("size", [(1, 2**16), (2**20, 1), (20_000, 1000), (2**13, 2**13)])
def test_long_pictures_are_none_of_them(size: tuple[int, int]) -> None:
    stream = unpack(pack(Stream(CodecId.COD, 0, *size, b"")))
    assert (stream.width, stream.height) == size


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_empty_pictures_cannot_be_claimed(size: tuple[int, int]) -> None:
    with pytest.raises(FormatError, match="at least 1 x 1"):
        pack(Stream(CodecId.COD, 0, *size, b""))
    head = b"\xb7r\0\0\0\0" + varint(size[0]) + varint(size[1])
    with pytest.raises(FormatError, match="the header claims"):
        unpack(head + checksum(head, b""))


def test_container_is_invertible() -> None:
    sections = {SectionTag.ICC: b"profile", SectionTag.ALPHA: bytes(300)}
    for width, height in [(1, 1), (127, 128), (16383, 4000), (1, 2**20)]:
        for progressive in (False, True):
            for chosen in ({}, sections):
                stream = Stream(CodecId.DIFFC, 0xABCDEF, width, height, b"payload", progressive, chosen)
                assert unpack(pack(stream)) == stream


def test_overhead() -> None:
    assert Stream(CodecId.COD, 1, 16383, 4096, b"x" * 50).header_size == 12
    assert Stream(CodecId.COD, 1, 127, 127, b"").header_size == 10


def test_only_progressive_codecs_may_claim_to_be() -> None:
    with pytest.raises(FormatError, match="progressive"):
        unpack(pack(Stream(CodecId.COD, 7, 3, 2, b"", progressive=True)))


def test_progressive_streams_may_be_cut_after_the_header() -> None:
    stream = Stream(CodecId.DIFFC, 7, 300, 200, b"0123456789", progressive=True)
    data = pack(stream)
    for length in range(stream.header_size, len(data) + 1):
        assert unpack(data[:length]).payload == data[stream.header_size : length]
    for length in range(stream.header_size):
        with pytest.raises(FormatError):
            unpack(data[:length])


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("alpha", [b"", b"no PNG", png_header(70, 40), png_header(9, 9), png_header(30_000, 30_000)])
def test_a_damaged_alpha_is_refused_before_the_network(
    alpha: bytes, valid: bytes, tiny_codec: CoDCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(tiny_codec, "decode", run)
    data = pack(replace(unpack(valid), sections={SectionTag.ALPHA: alpha}))
    with pytest.raises(FormatError, match="the stored alpha is"):
        codling.decode(data, model=tiny_codec)
    with pytest.raises(FormatError, match="the stored alpha is"):
        codling.preview(data, model=tiny_codec)
    with pytest.raises(FormatError, match="the stored alpha is"):
        codling.decode_batch([data], model=tiny_codec)


def with_checksum(head: bytes) -> bytes:
    return head + checksum(head, b"")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (b"\0", "announces sections"),
        (b"\x09\0\0", "unknown to this version"),
        (b"\2\0\1\0\0", "ascending"),
        (b"\1\0\1\0\0", "ascending"),
        (b"\1\xff\xff\xff\xff\x7f", "ends inside its section"),
        (b"\1\x80\x00\0", "malformed number"),
        (b"\1\xff\xff\xff\xff\xff\x01", "malformed number"),
    ],
)
def test_malformed_sections(sections: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack(with_checksum(b"\xb7r\x01\0\0\0\x05\x05" + sections))


def test_numbers_have_one_form() -> None:
    for value in (0, 1, 127, 128, 16383, 16384, 2**34):
        assert Reader(varint(value)).varint("x") == value
    with pytest.raises(FormatError, match="longer than it needs"):
        Reader(b"\x80\x00").varint("x")
