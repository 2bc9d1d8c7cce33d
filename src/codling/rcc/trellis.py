"""Trellis coding of a Gaussian target: the candidates of a group of dimensions depend on the last bits sent.

A block code of b bits searches 2^b candidates and wastes what a finite pool cannot deliver. Here a shift register of
`memory + bits` bits names the candidate of each group; each group sends `bits` new bits, and the best whole path is
found by Viterbi's algorithm, so every bit is chosen for its effect on many groups. The message has exactly
`groups x bits` bits and needs no entropy coder. The register starts at zero.

The encoder looks for codewords z, drawn from N(0, I), that maximise the log density ratio of the true conditional and
the distribution they are drawn from. With the predictive prior (see `codling.rcc`) codewords stand for values of
variance v, of which the share rho^2 is the channel's own noise, and that is, up to a constant,

    sum over groups of  z . target / rho^2 - |z|^2 (1 / rho^2 - 1) / 2

with the target in units of sqrt(v). Where rho^2 = 1 this is the plain projection.
"""

from dataclasses import dataclass

import numpy as np

from codling.bitstream.prng import PER_BLOCK, gaussians, normal_table, split_seed

MAX_REGISTER = 20


@dataclass(frozen=True)
class Trellis:
    """memory: bits that a group shares with those before it (2^memory states). bits: bits that a group sends."""

    memory: int = 10
    bits: int = 1

    def __post_init__(self) -> None:
        if not (1 <= self.bits <= 8 and self.bits <= self.memory and self.memory + self.bits <= MAX_REGISTER):
            raise ValueError(
                f"a trellis needs 1 to 8 bits a group, at least as much memory, and at most {MAX_REGISTER} together; "
                f"got bits {self.bits}, memory {self.memory}"
            )


def search(
    target: np.ndarray, starts: np.ndarray, noise_share: np.ndarray, trellis: Trellis, *, seed: int, step: int
) -> np.ndarray:
    """The best message for a target: (groups,) uint8, each below 2^bits.

    target: (n,) float32, in units of the codewords' deviation. starts: (groups + 1,), group i is
    `target[starts[i]:starts[i + 1]]`. noise_share: (groups,), rho^2 in (0, 1].
    """
    from codling.rcc.kernels import extend_paths, score_group

    groups = len(starts) - 1
    k0, k1 = (np.uint32(half) for half in split_seed(seed))
    # Only the zero register can be where a path begins.
    value = np.full(1 << trellis.memory, -np.inf, np.float32)
    value[0] = 0
    score = np.empty(1 << (trellis.memory + trellis.bits), np.float32)
    back = np.empty((groups, 1 << trellis.memory), np.uint8)
    for group in range(groups):
        padded, valid = _pad(target[starts[group] : starts[group + 1]])
        gain = np.float32(1 / noise_share[group])
        penalty = np.float32((1 / noise_share[group] - 1) / 2)
        score_group(padded, valid, gain, penalty, np.uint32(group), np.uint32(step), k0, k1, normal_table(), score)
        extend_paths(value, score, trellis.memory, trellis.bits, back[group])

    message = np.empty(groups, np.uint8)
    state = int(value.argmax())
    for group in range(groups - 1, -1, -1):
        message[group] = state & ((1 << trellis.bits) - 1)
        state = ((int(back[group, state]) << trellis.memory) | state) >> trellis.bits
    return message


def codewords(message: np.ndarray, starts: np.ndarray, trellis: Trellis, *, seed: int, step: int) -> np.ndarray:
    """What a message says: (n,) float32, standard normal over the choice of the seed. No search."""
    out = np.empty(int(starts[-1]), np.float32)
    register = 0
    for group, sent in enumerate(message):
        register = ((register << trellis.bits) | int(sent)) & ((1 << (trellis.memory + trellis.bits)) - 1)
        size = int(starts[group + 1] - starts[group])
        out[starts[group] : starts[group + 1]] = gaussians(
            size, seed=seed, stream=step, chunk=group, candidate=register
        )
    return out


def _pad(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A group's target in whole Philox blocks, and which of its entries are real."""
    padded = np.zeros(-(-len(part) // PER_BLOCK) * PER_BLOCK, np.float32)
    valid = np.zeros_like(padded)
    padded[: len(part)], valid[: len(part)] = part, 1
    return padded, valid
