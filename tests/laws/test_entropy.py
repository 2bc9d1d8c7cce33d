"""Integer tables: exact frequencies, inverse pairs, and a decoder written from `docs/format.md` alone."""

import numpy as np
import pytest

from codling.bitstream import entropy, indices
from codling.bitstream.bits import pack_bits, unpack_bits
from codling.bitstream.entropy import Decoder, Encoder, TableSet, fit_weights, frequencies
from codling.bitstream.index_tables import fit_index_model
from codling.bitstream.indices import IndexModel, decode_indices, encode_indices
from codling.errors import FormatError


def documented_decoder(data: bytes, rows: list[np.ndarray]) -> list[int]:
    """The range decoder of `docs/format.md`, symbol by symbol, without any library."""
    padded = data + bytes(-len(data) % 4)
    words = [int.from_bytes(padded[i : i + 4], "big") for i in range(0, len(padded), 4)]
    words += [0] * (len(rows) + 2)
    mask, lower, width, place = 2**64 - 1, 0, 2**64 - 1, 2
    point = words[0] << 32 | words[1]
    symbols = []
    for row in rows:
        f = frequencies(row)
        below = np.concatenate([[0], np.cumsum(f)])
        scale = width >> 24
        quantile = (point - lower & mask) // scale
        symbol = int(np.searchsorted(below, quantile, side="right")) - 1
        symbols.append(symbol)
        lower = lower + scale * int(below[symbol]) & mask
        width = scale * int(f[symbol])
        if width < 2**32:
            lower, width = lower << 32 & mask, width << 32
            point = (point << 32 & mask) | words[place]
            place += 1
    return symbols


@pytest.mark.parametrize("size", [2, 3, 16, 257, 4096])
def test_frequencies_are_positive_and_sum_to_the_precision(size: int) -> None:
    rng = np.random.default_rng(size)
    for weights in (
        fit_weights(rng.dirichlet(np.full(size, 0.05))),
        np.eye(1, size, dtype=np.uint16)[0],
        np.ones(size),
    ):
        f = frequencies(weights)
        assert f.sum() == 2**24
        assert f.min() >= 1


def test_frequencies_are_those_of_whole_numbers() -> None:
    """Where quotients are whole, and one less than whole, floating point must not round them up or down."""
    rng = np.random.default_rng(0)
    for size in (2, 7, 300):
        free = 2**24 - size
        rows = [rng.integers(0, 1 + limit, size) for limit in (1, 2**8, 2**16, 2**29) for _ in range(50)]
        rows += [np.array([k, free - k] + [0] * (size - 2)) for k in range(1, 200)]
        rows += [np.array([k, 2 * free - 1 - k] + [0] * (size - 2)) for k in range(1, 200)]
        for row in rows:
            weights = [int(w) for w in row]
            if not any(weights):
                continue
            wanted = [1 + w * free // sum(weights) for w in weights]
            wanted[weights.index(max(weights))] += 2**24 - sum(wanted)
            assert frequencies(row).tolist() == wanted


def test_coding_is_invertible_near_the_ideal_and_as_documented() -> None:
    rng = np.random.default_rng(0)
    for trial in range(60):
        count, size = int(rng.integers(0, 300)), int(rng.integers(2, 300))
        tables = TableSet(fit_weights(rng.dirichlet(np.full(size, 0.1), size=4)))
        contexts = rng.integers(0, 4, count)
        p = tables.weights / tables.weights.sum(1, keepdims=True)
        symbols = [int(rng.choice(size, p=p[c])) for c in contexts]
        encoder = Encoder()
        for symbol, context in zip(symbols, contexts, strict=True):
            encoder.put(symbol, tables.model(int(context)))
        data = encoder.finish()
        decoder = Decoder(data)
        assert [decoder.get(tables.model(int(c))) for c in contexts] == symbols, trial
        assert documented_decoder(data, [tables.weights[c] for c in contexts]) == symbols, trial
        ideal = sum(tables.bits(int(c), s) for s, c in zip(symbols, contexts, strict=True)) / 8
        assert ideal - 1 <= len(data) <= ideal + 2


def test_no_shorter_ending_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is found without decoding, which would take as long as the symbols do, for every ending tried."""
    monkeypatch.setattr(entropy, "Decoder", None)
    rng, lengths = np.random.default_rng(3), set()
    for _ in range(30):
        tables = TableSet(fit_weights(rng.dirichlet(np.full(9, 0.2), size=1)))
        symbols = [int(s) for s in rng.integers(0, 9, int(rng.integers(1, 9)))]
        encoder = Encoder()
        for symbol in symbols:
            encoder.put(symbol, tables.model(0))
        data, rows = encoder.finish(), [tables.weights[0]] * len(symbols)
        assert documented_decoder(data, rows) == symbols
        lengths.add(len(data))
        if 1 <= len(data) <= 2:
            shorter = (b"", *(bytes([byte]) for byte in range(256) if len(data) == 2))
            assert all(tried(one, rows) != symbols for one in shorter)
    assert {1, 2} <= lengths


def tried(data: bytes, rows: list[np.ndarray]) -> list[int] | None:
    """What the documented decoder makes of any bytes, None of those that no symbol has."""
    try:
        return documented_decoder(data, rows)
    except IndexError:
        return None


@pytest.mark.parametrize("bits", [1, 3, 4, 8, 11])
@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_bit_packing_is_invertible(bits: int, count: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, count)
    data = pack_bits(values, bits)
    assert len(data) == -(-count * bits // 8)
    assert np.array_equal(unpack_bits(data, count, bits), values)


def test_bit_packing_is_most_significant_first() -> None:
    assert pack_bits(np.array([1, 6, 1, 3, 14, 1]), 4) == bytes([0x16, 0x13, 0xE1])
    assert pack_bits(np.array([5]), 3) == bytes([0b10100000])


def test_bit_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        pack_bits(np.array([31]), 4)
    with pytest.raises(FormatError, match="padding"):
        unpack_bits(bytes([0b10100001]), 1, 3)
    with pytest.raises(FormatError, match="take 1 bytes"):
        unpack_bits(b"\0\0", 1, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (17, 23)])
@pytest.mark.parametrize("size", [5, 16, 100])
def test_index_maps_are_invertible(shape: tuple[int, int], size: int) -> None:
    rng = np.random.default_rng(size)
    # Neighbours resemble each other, as in pictures, so that coding wins on the larger maps.
    maps = [np.clip(np.cumsum(rng.integers(-1, 2, (40, 40)), 1) + size // 2, 0, size - 1) for _ in range(20)]
    model = fit_index_model(maps, size)
    indices = maps[0][: shape[0], : shape[1]]
    for tables in (model, None):
        data = encode_indices(indices, size, tables)
        assert np.array_equal(decode_indices(data, shape, size, tables), indices)
    assert len(encode_indices(indices, size, model)) <= len(encode_indices(indices, size, None))
    if shape == (17, 23):
        assert len(encode_indices(indices, size, model)) < 0.9 * len(encode_indices(indices, size, None))


def test_improbable_maps_fall_back_to_raw() -> None:
    maps = [np.zeros((20, 20), int) for _ in range(5)]
    model = fit_index_model(maps, 16)
    indices = np.random.default_rng(0).integers(1, 16, (6, 6))
    data = encode_indices(indices, 16, model)
    assert data[0] == 0
    assert np.array_equal(decode_indices(data, (6, 6), 16, model), indices)


def test_malformed_index_payloads() -> None:
    model = fit_index_model([np.zeros((4, 4), int), np.ones((4, 4), int)], 3)
    for data in (b"", b"\2", b"\0", b"\0\0\0", b"\0\xff", b"\1" + bytes(9)):
        with pytest.raises(FormatError):
            decode_indices(data, (2, 2), 3, model)
    with pytest.raises(FormatError, match="no tables"):
        decode_indices(b"\1", (2, 2), 3, None)


def test_a_few_coded_bytes_are_no_map_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheapest index costs something, and so do a million of them."""
    maps = [np.random.default_rng(0).poisson(1, (20, 20)).clip(0, 7) for _ in range(20)]
    model = fit_index_model(maps, 8)
    tables = TableSet(model.weights)
    cheapest = min(tables.bits(row, index) for row in range(len(model.weights)) for index in range(8))
    assert cheapest - 1 / 1024 <= model.least_cost / 1024 <= cheapest
    least = int(1000 * 1000 * model.least_cost / 8192)
    monkeypatch.setattr(indices, "Decoder", None)  # a million indices would take seconds
    for data in (b"\1", b"\1\x55\xaa", b"\1" + bytes(least - 1)):
        with pytest.raises(FormatError, match=f"at least {least} bytes, got {len(data) - 1}"):
            decode_indices(data, (1000, 1000), 8, model)


def test_maps_whose_code_ends_in_zeros_are_filled_up() -> None:
    """Index 0 alone has the code 0, which needs no byte; its map must decode nevertheless."""
    model = fit_index_model([np.random.default_rng(0).integers(0, 2, (20, 20)) for _ in range(9)], 2)
    assert model.least_cost > 0
    for side in (1, 10, 40):
        zeros = np.zeros((side, side), int)
        data = encode_indices(zeros, 2, model)
        assert np.array_equal(decode_indices(data, (side, side), 2, model), zeros)
    assert data[0] == 1
    assert len(data) == 1 + 1600 * model.least_cost // 8192 > 1


def test_tables_must_fit_their_groups() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        IndexModel(np.array([0, 1], np.uint8), np.ones((4, 2), np.uint16))
