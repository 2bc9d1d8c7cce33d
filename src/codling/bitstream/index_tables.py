"""Fitting the integer tables that entropy-code a model's indices."""

import numpy as np

from codling.bitstream.entropy import fit_weights
from codling.bitstream.indices import IndexModel

MAX_GROUPS = 15
# Weight of the prior, in counts a codeword: what a context must have seen before it is believed over its parts.
PRIOR = 8.0


def fit_index_model(maps: list[np.ndarray], codebook_size: int, *, groups: int = MAX_GROUPS) -> IndexModel:
    """Index maps (h, w) of many pictures -> tables conditional on the groups of the left and upper neighbours.

    groups: at most so many. Codebooks no larger have a group an index; in others, indices that tend to have the same
    neighbours share one.
    A context's counts are mixed with a prior, the product of what its left and its upper group say alone.
    """
    group_of = group_indices(maps, codebook_size, groups)
    outside = int(group_of.max()) + 1
    counts = np.zeros((outside + 1, outside + 1, codebook_size))
    for indices in maps:
        grouped = np.pad(group_of[indices], ((1, 0), (1, 0)), constant_values=outside)
        np.add.at(counts, (grouped[1:, :-1], grouped[:-1, 1:], indices), 1)

    marginal = counts.sum((0, 1)) + 0.5
    left = counts.sum(1) + 0.5 * codebook_size * marginal / marginal.sum()
    upper = counts.sum(0) + 0.5 * codebook_size * marginal / marginal.sum()
    prior = _normalised(_normalised(left)[:, None] * _normalised(upper)[None] / _normalised(marginal))
    weights = fit_weights((counts + PRIOR * codebook_size * prior).reshape(-1, codebook_size))
    return IndexModel(group_of.astype(np.uint8), np.maximum(weights, 1).astype(np.uint16))


def group_indices(maps: list[np.ndarray], codebook_size: int, groups: int) -> np.ndarray:
    """Group of each index, (codebook_size,): k-means over the square roots of their neighbour distributions."""
    if codebook_size <= groups:
        return np.arange(codebook_size)
    beside = np.zeros((codebook_size, codebook_size))
    for indices in maps:
        for first, second in ((indices[:, :-1], indices[:, 1:]), (indices[:-1], indices[1:])):
            np.add.at(beside, (first, second), 1)
            np.add.at(beside, (second, first), 1)
    weight = beside.sum(1)
    points = np.sqrt(_normalised(beside + 0.05))
    rng = np.random.default_rng(0)
    best, best_cost = np.zeros(codebook_size, int), np.inf
    for _ in range(8):
        centres = points[rng.choice(codebook_size, groups, replace=False)]
        for _ in range(40):
            # |p - c|^2 without the points' own norm sums, which are all 1.
            distance = 1 + np.square(centres).sum(-1) - 2 * points @ centres.T
            nearest = distance.argmin(1)
            for group in range(groups):
                members = nearest == group
                if weight[members].sum() > 0:
                    centres[group] = np.average(points[members], axis=0, weights=weight[members])
        cost = (distance.min(1) * weight).sum()
        if cost < best_cost:
            best, best_cost = nearest, cost
    return np.unique(best, return_inverse=True)[1]


def _normalised(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = x / x.sum(-1, keepdims=True)
    return out
