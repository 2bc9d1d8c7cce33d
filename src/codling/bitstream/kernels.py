"""Compiled loops of entropy coding: a decoder needs them once an index, which is when it knows the one before.

Floating point only holds integers here that it holds exactly, so every machine gets the same numbers in any order.
"""

import numba
import numpy as np

from codling.bitstream.compiled import compiled

# Of a context network: activations are 0 to 255, in 32nds; mixing weights are in 64ths, so what they make is shifted
# back by 6 bits.
ACTIVE, MIXING_SHIFT = 255, 6


@compiled
def shares(weights, free):  # type: ignore[no-untyped-def]
    """Integer weights (n,) -> how many of `free` parts each gets, (n,) whole float64: floor(w free / sum w), and the
    first largest what is left.

    Weights are below 2^29, so their products with `free` are exact. Quotients of these are rounded, by less than a
    sum-th, and one that is not whole is at least that far from the next whole number: the floor is exact.
    """
    size, most = 0, 0
    for i in range(len(weights)):
        size += weights[i]
        if weights[i] > weights[most]:
            most = i
    out = np.empty(len(weights))
    parts, left = np.float64(free), np.float64(free)
    for i in range(len(weights)):
        out[i] = np.floor(weights[i] * parts / size)
        left -= out[i]
    out[most] += left
    return out


@compiled
def neighbours(known, looks, number, row, column):  # type: ignore[no-untyped-def]
    """What maps (n, h, w) have where `looks` (m, 3) says, maps back, down and to the right of a place: (m,) int64."""
    out = np.empty(len(looks), np.int64)
    for i in range(len(looks)):
        out[i] = known[number - looks[i, 0], row + looks[i, 1], column + looks[i, 2]]
    return out


@compiled
def context_weights(around, embeddings, mixing, mixing_bias, output, output_bias, powers):  # type: ignore[no-untyped-def]
    """Indices around (n,) -> weights of the symbols (K,) int64; `bitstream.context_network` says of what.

    mixing: (H, H), output: (H, K), inputs first. powers: weights by how far a logit is below the highest, in 256ths of
    a bit, which are two units; the last is of all beyond.
    """
    a = np.zeros(embeddings.shape[2], np.float32)
    for i in range(len(around)):
        row = embeddings[i, around[i]]
        for h in range(len(a)):
            a[h] += np.float32(row[h])
    for h in range(len(a)):
        a[h] = _active(a[h])
    mixed = mixing_bias.astype(np.float32)
    _add_product(mixed, a, mixing)
    for h in range(len(a)):
        a[h] += _active(np.int32(mixed[h]) >> MIXING_SHIFT)
    logits = output_bias.astype(np.float32)
    _add_product(logits, a, output)
    highest, last = logits.max(), len(powers) - 1
    weights = np.empty(len(logits), np.int64)
    for k in range(len(logits)):
        weights[k] = powers[min(np.int32(highest - logits[k]) >> 1, last)]
    return weights


@numba.njit(inline="always")
def _active(x):  # type: ignore[no-untyped-def]
    return np.float32(min(max(x, 0), ACTIVE))


@compiled
def _add_product(sums, factors, rows):  # type: ignore[no-untyped-def]
    """sums (k,) += factors (n,) @ rows (n, k).

    Rows of factors that are zero, as many are, are passed over; the others are taken four at a time, so that sums are
    read and written less often.
    """
    live = np.flatnonzero(factors)
    whole = len(live) // 4 * 4
    for j in range(0, whole, 4):
        a, b, c, d = factors[live[j]], factors[live[j + 1]], factors[live[j + 2]], factors[live[j + 3]]
        p, q, r, s = rows[live[j]], rows[live[j + 1]], rows[live[j + 2]], rows[live[j + 3]]
        for k in range(len(sums)):
            sums[k] += (
                a * np.float32(p[k]) + b * np.float32(q[k]) + c * np.float32(r[k]) + d * np.float32(s[k])
            )  # fmt: skip
    for j in live[whole:]:
        a, p = factors[j], rows[j]
        for k in range(len(sums)):
            sums[k] += a * np.float32(p[k])
