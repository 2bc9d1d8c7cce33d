"""Networks of integers that predict indices: exact everywhere, invertible, and blind to what is not yet decoded."""

from fractions import Fraction

import numpy as np
import pytest

from codling.bitstream import indices as coding
from codling.bitstream.context_network import REACH, ContextNetwork, bordered, powers
from codling.bitstream.indices import decode_maps, encode_maps
from codling.errors import FormatError

LOOKS = ((0, 0, -1), (0, -1, 0), (0, -1, 2), (1, 0, 0), (1, 1, 1), (2, 0, 0))


def network(
    symbols: int, *, hidden: int = 5, looks: tuple[tuple[int, int, int], ...] = LOOKS[:3], size: int = 40, seed: int = 0
) -> ContextNetwork:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.integers(-size, size + 1, shape).astype(np.int8)

    return ContextNetwork(
        looks=np.array(looks, np.int8),
        embeddings=draw(len(looks), symbols + 1, hidden),
        mixing=draw(hidden, hidden),
        mixing_bias=(100 * draw(hidden).astype(np.int16)),
        output=draw(symbols, hidden),
        output_bias=(100 * draw(symbols).astype(np.int16)),
    )


def by_whole_numbers(net: ContextNetwork, around: list[int]) -> list[int]:
    """The format's own words (section 4), in Python's unbounded integers."""
    hidden = range(net.mixing.shape[0])
    a = [sum(int(net.embeddings[n, index, j]) for n, index in enumerate(around)) for j in hidden]
    a = [min(max(x, 0), 255) for x in a]
    b = [(sum(int(net.mixing[i, j]) * a[j] for j in hidden) + int(net.mixing_bias[i])) >> 6 for i in hidden]
    c = [x + min(max(y, 0), 255) for x, y in zip(a, b, strict=True)]
    logits = [
        sum(int(row[j]) * c[j] for j in hidden) + int(bias)
        for row, bias in zip(net.output, net.output_bias, strict=True)
    ]
    least = 1 + 128 // len(logits)
    return [max(least, int(powers()[min((max(logits) - logit) >> 1, 4096)])) for logit in logits]


def test_powers_are_floors() -> None:
    table = powers()
    assert (len(table), table[0], table[256], table[-1]) == (4097, 1 << 16, 1 << 15, 1)
    for i in (1, 7, 255, 257, 1000, 4095):
        # w <= 2^(16 - i / 256) < w + 1, both sides raised to the 256th.
        exact = Fraction(2) ** (16 * 256 - i)
        assert int(table[i]) ** 256 <= exact < (int(table[i]) + 1) ** 256


@pytest.mark.parametrize("size", [3, 40, 127])
def test_weights_are_those_of_whole_numbers(size: int) -> None:
    net = network(7, hidden=11, size=size, looks=LOOKS)
    around = np.random.default_rng(1).integers(0, 8, (50, len(LOOKS)))
    for row in around:
        found = net.weights(row).tolist()
        assert found == by_whole_numbers(net, row.tolist())
        assert min(found) >= 1


def test_the_largest_numbers_are_exact() -> None:
    """Sums as large as they get, of the widest network: float32 must not round them."""
    hidden = 256
    net = network(3, hidden=hidden, looks=LOOKS[:3])
    for name in ("embeddings", "mixing", "output"):
        getattr(net, name)[:] = 127
    net.output[1], net.output[2, ::2] = -128, 126
    assert net.weights(np.zeros(3, int)).tolist() == by_whole_numbers(net, [0, 0, 0])
    with pytest.raises(ValueError, match="257 hidden units are too many"):
        network(3, hidden=257)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 11)])
@pytest.mark.parametrize("symbols", [2, 9, 300])
def test_maps_are_invertible(shape: tuple[int, int], symbols: int) -> None:
    rng = np.random.default_rng(symbols)
    # Frequent indices are likely, so that coding wins.
    maps = np.minimum(rng.geometric(0.6, (3, *shape)) - 1, symbols - 1)
    nets = [network(symbols, looks=LOOKS[:count], size=3, seed=count) for count in (3, 5, 6)]
    for net in nets:
        net.output_bias[:] = np.maximum(-500 * np.arange(symbols), -30_000)
    data = encode_maps(maps, symbols, nets)
    assert np.array_equal(decode_maps(data, maps.shape, symbols, nets), maps)
    if symbols == 300:
        assert data[0] == coding.Mode.CODED


def test_what_is_predicted_depends_on_what_is_known_alone() -> None:
    net, rng = network(9, looks=LOOKS), np.random.default_rng(0)
    maps = rng.integers(0, 9, (3, 5, 6))
    known = maps.copy()
    known[2, 2, 3:], known[2, 3:] = 0, 0
    here = [net.looks[:, n] for n in range(3)]
    seen = [bordered(m)[2 - here[0], 2 + REACH + here[1], 3 + REACH + here[2]] for m in (maps, known)]
    assert np.array_equal(*seen)
    # Other maps are known whole, and all that the network looks at counts.
    for back, down, right in net.looks.tolist():
        other = maps.copy()
        other[2 - back, 2 + down, 3 + right] = (maps[2 - back, 2 + down, 3 + right] + 1) % 9
        changed = bordered(other)[2 - here[0], 2 + REACH + here[1], 3 + REACH + here[2]]
        assert not np.array_equal(net.weights(seen[0]), net.weights(changed)), (back, down, right)


@pytest.mark.parametrize("symbols", [2, 5, 100, 129, 2048])
def test_no_index_costs_less_than_the_least(symbols: int) -> None:
    """Nothing is certain, however large the logits: a few bytes are no map of any size."""
    net = network(symbols, hidden=2)
    net.output[:], net.output_bias[:] = 0, -32_768
    net.output_bias[1] = 32_767
    weights = net.weights(np.zeros(3, int))
    cost = 1024 * np.log2(weights.sum() / weights.max())
    assert 1 <= net.least_cost <= cost < net.least_cost + 1.1
    ones = np.ones((1, 90, 100), int)
    least = 9000 * net.least_cost // 8192
    data = encode_maps(ones, symbols, [net])
    assert least <= len(data) - 1 <= 9000 * cost / 8192 + 2
    assert np.array_equal(decode_maps(data, ones.shape, symbols, [net]), ones)
    with pytest.raises(FormatError, match=f"at least {least} bytes, got {least - 1}"):
        decode_maps(data[:least], ones.shape, symbols, [net])


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        (((0, 0, 0),), "not yet decoded"),
        (((0, 0, 1),), "not yet decoded"),
        (((0, 1, -1),), "not yet decoded"),
        (((-1, 0, 0),), "not yet decoded"),
        (((0, -3, 0),), "the farthest"),
        (((1, 0, 3),), "the farthest"),
    ],
)
def test_looks_that_cannot_be(looks: tuple[tuple[int, int, int], ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        network(3, looks=looks)


def test_shapes_must_fit() -> None:
    net = network(4)
    parts = {name: getattr(net, name) for name in ContextNetwork.__dataclass_fields__}
    for name in parts:
        with pytest.raises(ValueError, match=r"has shape|not enough values"):
            ContextNetwork(**{**parts, name: parts[name][..., 1:]})


def test_a_map_without_those_before_it_is_refused() -> None:
    net = network(9, looks=LOOKS)
    assert net.maps_before == 2
    with pytest.raises(ValueError, match="looks 2 maps back cannot predict map 1"):
        encode_maps(np.zeros((2, 3, 3), int), 9, [network(9), net])
