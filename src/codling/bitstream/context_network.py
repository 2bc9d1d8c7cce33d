"""A network of small integers that predicts an index from those around it, in place of tables.

    indices around --embeddings, summed--> a --mixing--> b;  a + b --output--> logits, in 512ths of a bit

All of it is integer arithmetic, so every machine predicts the same frequencies to the bit: what is learned here are
integers stored with the model, as tables are. Matrix products are computed in float32 (`bitstream.kernels`), which is
exact here whatever the order: no sum reaches 2^24.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from math import isqrt

import numpy as np

from codling.bitstream.entropy import PRECISION, Categorical, categorical, least_cost
from codling.bitstream.kernels import ACTIVE, context_weights, neighbours

# Weights of symbols are 2^16 for the likeliest, down to 1 for all that are 16 bits less likely or more; in small
# codebooks to so much more that even the likeliest index costs something.
RANGE_BITS, STEPS_A_BIT, SHARED = 16, 256, 128
# Units of a network whose sums are still exact: below 2^24 with activations up to 510, weights down to -128 and a bias.
MOST_HIDDEN = ((1 << 24) - (1 << 15) - 1) // (2 * ACTIVE * 128)
# How far around an index, each way, a network may look; maps have a border of so many places that are outside.
REACH, OUTSIDE = 2, -1


@dataclass(frozen=True)
class ContextNetwork:
    """Integers of a network that predicts the indices of one map, with H hidden units, of a codebook of K.

    looks: (n, 3) int8, where it looks: how many maps back (0: its own map), rows down, columns to the right.
    embeddings: (n, K + 1, H) int8; the last stands for what is outside the map.
    mixing: (H, H) int8. mixing_bias: (H,) int16. output: (K, H) int8. output_bias: (K,) int16.
    """

    looks: np.ndarray
    embeddings: np.ndarray
    mixing: np.ndarray
    mixing_bias: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray

    def __post_init__(self) -> None:
        n, outside, hidden = self.embeddings.shape
        shapes = {
            "looks": (n, 3), "mixing": (hidden, hidden), "mixing_bias": (hidden,), "output": (outside - 1, hidden),
            "output_bias": (outside - 1,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} of a context network has shape {getattr(self, name).shape}, wanted {shape}")
        for back, down, right in self.looks.tolist():
            if back < 0 or (back == 0 and (down, right) >= (0, 0)):
                raise ValueError(f"a context network looks at {(back, down, right)}, which is not yet decoded then")
            if max(abs(down), abs(right)) > REACH:
                raise ValueError(f"a context network looks at {(back, down, right)}; {REACH} places are the farthest")
        if hidden > MOST_HIDDEN:
            raise ValueError(f"{hidden} hidden units are too many for exact sums, {MOST_HIDDEN} are the most")

    @property
    def symbols(self) -> int:
        return len(self.output)

    @cached_property
    def maps_before(self) -> int:
        """How many maps before its own it looks at."""
        return int(self.looks[:, 0].max())

    @property
    def least_weight(self) -> int:
        return 1 + SHARED // self.symbols

    @cached_property
    def least_cost(self) -> int:
        """What the cheapest index takes at least, in 1024ths of a bit, rounded down: the others have least weights."""
        whole, others = 1 << PRECISION, self.symbols - 1
        total = (1 << RANGE_BITS) + others * self.least_weight
        return least_cost(whole - others * (self.least_weight * (whole - self.symbols) // total))

    def predict(self, known: np.ndarray, number: int, row: int, column: int) -> Categorical:
        """The coder's model of one index of map `number`; all before it in the `bordered` maps are known."""
        if number < self.maps_before:
            raise ValueError(f"a context network that looks {self.maps_before} maps back cannot predict map {number}")
        return categorical(self.weights(neighbours(known, self.looks, number, row + REACH, column + REACH)))

    def weights(self, around: np.ndarray) -> np.ndarray:
        """Indices around (n,) int64 -> weights (K,) int64."""
        out: np.ndarray = context_weights(
            around, self.embeddings, self._mixing, self.mixing_bias, self._output, self.output_bias, self._weights
        )
        return out

    @cached_property
    def _weights(self) -> np.ndarray:
        """By how far a logit is below the highest, in 256ths of a bit."""
        return np.maximum(powers(), self.least_weight)

    @cached_property
    def _mixing(self) -> np.ndarray:
        return np.ascontiguousarray(self.mixing.T)

    @cached_property
    def _output(self) -> np.ndarray:
        return np.ascontiguousarray(self.output.T)


def bordered(maps: np.ndarray) -> np.ndarray:
    """Maps of indices (n, h, w) -> the same within a border of `OUTSIDE`, int64."""
    return np.pad(maps.astype(np.int64), ((0, 0), (REACH, REACH), (REACH, REACH)), constant_values=OUTSIDE)


def inner(known: np.ndarray) -> np.ndarray:
    """The maps in their border."""
    return known[:, REACH:-REACH, REACH:-REACH]


@cache
def powers() -> np.ndarray:
    """floor(2^(16 - i / 256)) for i up to 4096, int64, by whole roots alone: eight square roots are a 256th root."""
    values = []
    for i in range(RANGE_BITS * STEPS_A_BIT + 1):
        value = 1 << (RANGE_BITS * STEPS_A_BIT - i)
        for _ in range(STEPS_A_BIT.bit_length() - 1):
            value = isqrt(value)
        values.append(value)
    return np.array(values)
