"""SWD: sliced Wasserstein distance between patches over a Laplacian pyramid (after Karras et al. 2018, section 5).

How far the local texture of the decoded picture is from the original's, wherever in the picture it lies; no learned
weights. Specified in `docs/evaluation.md`; in short, for each level of the pyramid:

    patches 7 x 7 x 3 at a regular grid, scaled by the original's mean and deviation of each channel
    128 fixed directions; along each, mean |difference| of the sorted projections of both pictures (1-Wasserstein)

The mean over directions, then over levels, times 100. Identical pictures have 0.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from codling.bitstream.prng import gaussians

PATCH = 7
DIRECTIONS = 128
# Patches of a level: bounds the time on large pictures.
PATCHES = 4096
SMALLEST_SIDE = 16
SCALE = 100.0
KERNEL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def swd(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Distance of two (H, W, 3) uint8 pictures of one size, at least 16 px a side."""
    return compare([patches(reference)], [patches(decoded)])


def compare(references: list[list[np.ndarray]], decoded: list[list[np.ndarray]]) -> float:
    """Distance of two sets of pictures, each given by its `patches`; levels that all pictures have are compared."""
    levels = min(len(levels) for levels in (*references, *decoded))
    distances = []
    for level in range(levels):
        first, second = (np.concatenate([picture[level] for picture in side]) for side in (references, decoded))
        mean, deviation = first.mean((0, 1)), first.std((0, 1)) + 1e-6
        projections = [
            np.sort(((side - mean) / deviation).reshape(len(side), -1) @ directions(), axis=0)
            for side in (first, second)
        ]
        distances.append(np.abs(projections[0] - projections[1]).mean())
    return SCALE * float(np.mean(distances))


def patches(picture: np.ndarray, limit: int = PATCHES) -> list[np.ndarray]:
    """Per level of the pyramid, finest first: at most `limit` patches (n, 49, 3) float32 at a regular grid."""
    found = []
    for level in laplacian_pyramid(picture.astype(np.float32) / 255):
        windows = sliding_window_view(level, (PATCH, PATCH), axis=(0, 1))  # (rows, columns, 3, 7, 7)
        stride = max(1, int(np.ceil(np.sqrt(windows.shape[0] * windows.shape[1] / limit))))
        chosen = windows[::stride, ::stride].reshape(-1, 3, PATCH * PATCH)
        found.append(chosen.transpose(0, 2, 1))
    return found


def laplacian_pyramid(picture: np.ndarray) -> list[np.ndarray]:
    """(H, W, 3) -> band-pass pictures, finest first, and last the low-pass rest; halved while both sides stay >= 16."""
    levels = []
    while min(picture.shape[:2]) >= 2 * SMALLEST_SIDE:
        smaller = _blur(picture)[::2, ::2]
        height, width = picture.shape[:2]
        spread = np.zeros_like(picture)
        spread[::2, ::2] = smaller
        # Zeros stand between the samples, so the blur must be divided by what it makes of ones put the same way.
        weight = np.zeros((height, width, 1), np.float32)
        weight[::2, ::2] = 1
        levels.append(picture - _blur(spread) / _blur(weight))
        picture = smaller
    return [*levels, picture]


def directions() -> np.ndarray:
    """(147, 128) unit vectors, the same on every machine: codling's own generator, seed 0."""
    raw = gaussians(PATCH * PATCH * 3 * DIRECTIONS, seed=0).reshape(PATCH * PATCH * 3, DIRECTIONS)
    unit: np.ndarray = raw / np.linalg.norm(raw, axis=0)
    return unit.astype(np.float32)


def _blur(picture: np.ndarray) -> np.ndarray:
    """Binomial blur, the border reflected."""
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    rows = np.sum([w * padded[i : i + picture.shape[0]] for i, w in enumerate(KERNEL)], axis=0)
    out: np.ndarray = np.sum([w * rows[:, i : i + picture.shape[1]] for i, w in enumerate(KERNEL)], axis=0)
    return out
