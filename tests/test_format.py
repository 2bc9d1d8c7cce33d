"""The worked example of `docs/format.md`, encoded and decoded."""

import re
from pathlib import Path

import numpy as np

from codling.bitstream.container import CodecId, Stream, pack, unpack
from codling.bitstream.entropy import frequencies
from codling.bitstream.indices import IndexModel, decode_indices, encode_indices

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
INDICES = np.array([[0, 2, 1], [2, 0, 1]])
MODEL = IndexModel(
    groups=np.array([0, 0, 1, 1], np.uint8),
    weights=np.stack([np.roll([8, 4, 2, 1], c) for c in range(9)]).astype(np.uint16),
)


def files_on_the_page() -> list[bytes]:
    return [bytes.fromhex(line) for line in re.findall(r"^    (b7 72 [0-9a-f ]+)$", PAGE, re.MULTILINE)]


def test_example_encodes_to_the_bytes_on_the_page() -> None:
    payloads = [encode_indices(INDICES, 4, MODEL), encode_indices(INDICES, 4, None)]
    files = [pack(Stream(CodecId.COD, 0x123456, 40, 30, payload)) for payload in payloads]
    assert files == files_on_the_page()


def test_example_decodes_from_the_bytes_on_the_page() -> None:
    assert len(files_on_the_page()) == 2
    for data in files_on_the_page():
        stream = unpack(data)
        assert (stream.width, stream.height, stream.model_id, stream.codec) == (40, 30, 0x123456, CodecId.COD)
        assert np.array_equal(decode_indices(stream.payload, (2, 3), 4, MODEL), INDICES)


def test_numbers_quoted_on_the_page() -> None:
    assert frequencies(np.array([8, 4, 2, 1])).tolist() == [8947849, 4473924, 2236962, 1118481]
    assert [MODEL.context(INDICES, row, column) for row in range(2) for column in range(3)] == [8, 2, 5, 6, 4, 0]
    assert int(re.search(r"q = (\d+)", PAGE)[1]) == (0x2E << 56) // ((2**64 - 1) >> 24)
