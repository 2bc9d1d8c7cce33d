"""The worked examples of `docs/format.md`, encoded and decoded."""

import re
from pathlib import Path

import numpy as np
import torch

from codling.bitstream.container import CodecId, Stream, pack, unpack
from codling.bitstream.context_network import ContextNetwork
from codling.bitstream.entropy import frequencies
from codling.bitstream.indices import IndexModel, decode_indices, encode_indices
from codling.codecs.oscar import OscarCodec
from codling.models.rate_levels import RateLevel, Tokens
from tests.oscar_stand_in import Squares

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
INDICES = np.array([[0, 2, 1], [2, 0, 1]])
MODEL = IndexModel(
    groups=np.array([0, 0, 1, 1], np.uint8),
    weights=np.stack([np.roll([8, 4, 2, 1], c) for c in range(9)]).astype(np.uint16),
)
PREDICTED = np.array([[0, 2, 0], [0, 1, 0]])
NETWORK = ContextNetwork(
    looks=np.array([(0, 0, -1), (0, -1, 0)], np.int8),
    embeddings=np.array(
        [[(64, 0), (32, 0), (0, 64), (0, 32), (16, 0)], [(0, 32), (0, 64), (32, 0), (64, 0), (0, 16)]], np.int8
    ),
    mixing=np.array([(16, -32), (-32, 16)], np.int8),
    mixing_bias=np.array([0, 100], np.int16),
    output=np.array([(0, 16), (8, 8), (16, 0), (-8, -8)], np.int8),
    output_bias=np.array([512, 0, 0, 0], np.int16),
)


def files_on_the_page(model_id: int) -> list[bytes]:
    files = [bytes.fromhex(line) for line in re.findall(r"^    (b7 72 [0-9a-f ]+)$", PAGE, re.MULTILINE)]
    return [file for file in files if unpack(file).model_id == model_id]


def test_example_encodes_to_the_bytes_on_the_page() -> None:
    payloads = [encode_indices(INDICES, 4, MODEL), encode_indices(INDICES, 4, None)]
    files = [pack(Stream(CodecId.COD, 0x123456, 40, 30, payload)) for payload in payloads]
    assert files == files_on_the_page(0x123456)


def test_example_decodes_from_the_bytes_on_the_page() -> None:
    assert len(files_on_the_page(0x123456)) == 2
    for data in files_on_the_page(0x123456):
        stream = unpack(data)
        assert (stream.width, stream.height, stream.model_id, stream.codec) == (40, 30, 0x123456, CodecId.COD)
        assert np.array_equal(decode_indices(stream.payload, (2, 3), 4, MODEL), INDICES)


def test_numbers_quoted_on_the_page() -> None:
    assert frequencies(np.array([8, 4, 2, 1])).tolist() == [8947849, 4473924, 2236962, 1118481]
    assert [MODEL.context(INDICES, row, column) for row in range(2) for column in range(3)] == [8, 2, 5, 6, 4, 0]
    assert int(re.search(r"q = (\d+)", PAGE)[1]) == (0x2E << 56) // ((2**64 - 1) >> 24)


def test_example_of_a_network() -> None:
    stream = Stream(CodecId.COD, 0x654321, 40, 30, encode_indices(PREDICTED, 4, NETWORK))
    assert [pack(stream)] == files_on_the_page(0x654321)
    assert np.array_equal(decode_indices(stream.payload, (2, 3), 4, NETWORK), PREDICTED)
    (weights,) = re.findall(r"`w = \((65536, [0-9, ]+)\)`", PAGE)
    assert NETWORK.weights(np.array([2, -1])).tolist() == [int(weight) for weight in weights.split(", ")]


class TwoLevels(Squares):
    levels = (RateLevel(32, 4, 0.3), RateLevel(16, 4, 0.5))


def oscar_codec(*, tables: bool) -> OscarCodec:
    index_models = [MODEL, MODEL] if tables else []
    return OscarCodec(TwoLevels(), name="two", model_id=0xABCDEF, index_models=index_models, gains=2)


def test_oscar_example() -> None:
    indices = np.array([[0, 2, 1, 2], [2, 0, 1, 1]])
    contexts = [MODEL.context(indices, row, column) for row in range(2) for column in range(4)]
    assert contexts == [8, 2, 5, 2, 6, 4, 0, 1]
    tokens = Tokens(torch.from_numpy(indices)[None, None], torch.tensor([[0.40, -0.22]]))
    payloads = [oscar_codec(tables=tables).pack(tokens, 1) for tables in (True, False)]
    files = [pack(Stream(CodecId.OSCAR, 0xABCDEF, 40, 30, payload)) for payload in payloads]
    assert files == files_on_the_page(0xABCDEF)
    for file in files:
        stream = unpack(file)
        read, level = oscar_codec(tables=True).unpack(stream.payload, height=stream.height, width=stream.width)
        assert level == 1
        assert torch.equal(read.indices, tokens.indices)
        assert read.log_gains is not None
        assert read.log_gains.tolist() == [[6 / 16, -4 / 16]]
