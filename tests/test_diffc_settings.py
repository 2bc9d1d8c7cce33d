"""What a DiffC stream says before its first step: settings, memory, colours."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from codling.bitstream.bits import BitReader, BitWriter
from codling.bitstream.container import CodecId
from codling.codecs.activity_map import write_map
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.chain import LEAST_COLOUR, Chain
from codling.codecs.diffc import DiffCCodec
from codling.codecs.diffc_stream import (
    CANDIDATES,
    MOST_MEMORY,
    DiffCConfig,
    affordable_memory,
    read_colours,
    read_settings,
    write_colours,
    write_settings,
)
from codling.errors import FormatError
from codling.pictures import to_image_array
from codling.weights.registry import load
from tests.conftest import noise_picture
from tests.training import CPU


@pytest.fixture(scope="module")
def linear() -> DiffCCodec:
    codec = load("linear", device=CPU, codec=CodecId.DIFFC)
    assert isinstance(codec, DiffCCodec)
    return codec


@pytest.mark.parametrize(
    "changes", [{}, {"memory": 16}, {"memory": 8, "bits": 3}, {"times": (900, 400), "threshold": -128}]
)
def test_settings_are_an_inverse_pair(changes: dict[str, object]) -> None:
    default = DiffCConfig()
    config, writer = replace(default, **changes), BitWriter()  # type: ignore[arg-type]
    write_settings(writer, 700, config, default)
    assert read_settings(BitReader(writer.to_bytes()), default) == (700, config)


def test_memory_alone_costs_nothing() -> None:
    default, sizes = DiffCConfig(), []
    for memory in (10, 14):
        writer = BitWriter()
        write_settings(writer, 700, replace(default, memory=memory), default)
        sizes.append(writer.count)
    assert sizes[0] == sizes[1] <= 16


def test_an_impossible_memory_is_refused() -> None:
    writer = BitWriter()
    write_settings(writer, 700, DiffCConfig(), DiffCConfig())
    bits = np.unpackbits(np.frombuffer(writer.to_bytes(), np.uint8))
    bits[10:14] = 0, 0, 1, 1  # a memory of 4
    with pytest.raises(FormatError, match="settings are damaged"):
        read_settings(BitReader(np.packbits(bits).tobytes()), DiffCConfig())


def test_small_streams_are_searched_with_more_memory_in_no_more_time() -> None:
    for size in (1, 10, 500, 1000, 3000, 10_000, 10**6):
        memory = affordable_memory(size, 10)
        assert 10 <= memory <= MOST_MEMORY
        # One bit a group, two candidates for every state.
        assert memory == 10 or 8 * size * 2 << memory <= CANDIDATES
    assert affordable_memory(100, 10) == MOST_MEMORY
    assert affordable_memory(10**6, 10) == 10
    assert affordable_memory(10**6, 12) == 12


@pytest.mark.parametrize("colours", [[0, 0, 0], [0, -8, 0], [0, 24, -24], [0]])
def test_colours_are_an_inverse_pair(colours: list[int]) -> None:
    writer = BitWriter()
    write_colours(writer, np.array(colours))
    assert read_colours(BitReader(writer.to_bytes()), len(colours)).tolist() == colours


@pytest.mark.parametrize("colours", [[0, 25, 0], [0, 0, -25], [0, 48, 0]])
def test_colours_out_of_range_are_refused(colours: list[int]) -> None:
    writer = BitWriter()
    write_colours(writer, np.array(colours))
    with pytest.raises(FormatError, match="damaged"):
        read_colours(BitReader(writer.to_bytes()), 3)


def test_dull_colours_cost_less(linear: DiffCCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gray picture says so once, and the bits that its colours would have had go to what there is."""
    picture = noise_picture(128, 160, seed=3).mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
    image = torch.from_numpy(to_image_array(picture))[None]
    quality = {}
    for told in (True, False):
        if not told:
            monkeypatch.setattr(Chain, "measure_colours", lambda chain, source: None)
        payload = linear.encode(image, RateTarget(max_bytes=300))
        chain, _ = next(linear.walk(payload, height=128, width=160))
        assert chain.colours.tolist() == ([0, LEAST_COLOUR, LEAST_COLOUR] if told else [0, 0, 0])
        decoded = linear.decode(payload, height=128, width=160, options=DecodeOptions(steps=1))
        quality[told] = -10 * math.log10(float((decoded - image).square().mean()))
    assert quality[True] > quality[False] + 0.05


@pytest.mark.parametrize("changes", [[25], [-25], [-24, -1], [-20, -5], [49], [9000]])
def test_scales_out_of_range_are_refused(changes: list[int], linear: DiffCCodec) -> None:
    """A step with a scale far below zero has no message, so the next step's scale follows at once."""
    with pytest.raises(FormatError, match="damaged"):
        linear.decode(of_scales(changes, linear), height=24, width=40, options=DecodeOptions(steps=1))
    for allowed in ([24], [-24, 1], [-24, 48]):
        decoded = linear.decode(of_scales(allowed, linear), height=24, width=40, options=DecodeOptions(steps=1))
        assert decoded.isfinite().all()


def of_scales(changes: list[int], codec: DiffCCodec) -> bytes:
    """A payload that has nothing but its settings and changes of the scale."""
    writer = BitWriter()
    write_settings(writer, codec.config.times[len(changes) - 1], codec.config, codec.config)
    write_map(writer, None, codec.tables[False])
    write_colours(writer, np.zeros(3, int))
    for change in changes:
        writer.put_signed(change)
    return writer.to_bytes()
