"""GMSD and HaarPSI: two quality measures without learned weights, on the luminance of 8-bit pictures."""

import numpy as np

Y_WEIGHTS = np.array([0.299, 0.587, 0.114])


def gmsd(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Gradient magnitude similarity deviation (Xue et al. 2014), >= 0, 0 for identical (H, W, 3) uint8 pictures.

    Both sides are averaged over 2 x 2 and halved, gradients are Prewitt's, the constant is 170 on the 8-bit scale.
    """
    first, second = (_prewitt(_halved(_luma(picture))) for picture in (reference, decoded))
    similarity = (2 * first * second + 170) / (first**2 + second**2 + 170)
    return float(similarity.std())


def haarpsi(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Haar wavelet-based perceptual similarity index (Reisenhofer et al. 2018), in [0, 1], 1 for identical pictures.

    (H, W, 3) uint8 pictures; constants C = 30 and alpha = 4.2 as in the authors' code, chroma included.
    """
    constant, alpha = 30.0, 4.2
    first, second = (_yiq(picture) for picture in (reference, decoded))
    similarities, weights = [], []
    for axis in (0, 1):
        own = [[np.abs(_haar(picture[..., 0], scale, axis)) for scale in (1, 2, 3)] for picture in (first, second)]
        similarities.append(np.mean([_similarity(own[0][s], own[1][s], constant) for s in (0, 1)], axis=0))
        weights.append(np.maximum(own[0][2], own[1][2]))
    chroma = [
        _similarity(np.abs(_box2(first[..., channel])), np.abs(_box2(second[..., channel])), constant)
        for channel in (1, 2)
    ]
    similarities.append(np.mean(chroma, axis=0))
    weights.append(np.mean(weights, axis=0))
    total = np.sum(weights)
    if total == 0:  # two flat pictures: nothing is weighted, so weigh all alike
        weights, total = [np.ones_like(w) for w in weights], float(sum(w.size for w in weights))
    score = sum((w / (1 + np.exp(-alpha * s))).sum() for s, w in zip(similarities, weights, strict=True)) / total
    return float((np.log(score / (1 - score)) / alpha) ** 2)


def _similarity(a: np.ndarray, b: np.ndarray, constant: float) -> np.ndarray:
    out: np.ndarray = (2 * a * b + constant) / (a**2 + b**2 + constant)
    return out


def _luma(picture: np.ndarray) -> np.ndarray:
    out: np.ndarray = picture.astype(np.float64) @ Y_WEIGHTS
    return out


def _yiq(picture: np.ndarray) -> np.ndarray:
    """YIQ at half the size: averaged over 2 x 2 and halved."""
    matrix = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    yiq = picture.astype(np.float64) @ matrix.T
    return np.stack([_halved(yiq[..., channel]) for channel in range(3)], axis=-1)


def _halved(x: np.ndarray) -> np.ndarray:
    """Means over 2 x 2, an odd last row or column dropped."""
    height, width = (side // 2 * 2 for side in x.shape)
    out: np.ndarray = x[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    return out


def _prewitt(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, 1)
    rows, columns = x.shape
    smooth_down = np.sum([padded[i : i + rows] for i in range(3)], axis=0) / 3
    smooth_right = np.sum([padded[:, i : i + columns] for i in range(3)], axis=0) / 3
    horizontal = smooth_down[:, 2:] - smooth_down[:, :-2]
    vertical = smooth_right[2:] - smooth_right[:-2]
    out: np.ndarray = np.hypot(horizontal, vertical)
    return out


def _haar(x: np.ndarray, scale: int, axis: int) -> np.ndarray:
    """Response of the Haar filter of side 2^scale: one half of the window against the other, times 2^-scale."""
    side = 2**scale
    half = side // 2
    padded = np.pad(x, ((half - 1, half), (half - 1, half)) if half > 1 else ((0, 1), (0, 1)))
    sums = np.pad(padded, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    rows, columns = x.shape

    def window(top: int, left: int, height: int, width: int) -> np.ndarray:
        a, b = slice(top, top + rows), slice(top + height, top + height + rows)
        c, d = slice(left, left + columns), slice(left + width, left + width + columns)
        out: np.ndarray = sums[b, d] - sums[a, d] - sums[b, c] + sums[a, c]
        return out

    if axis == 0:
        difference = window(half, 0, half, side) - window(0, 0, half, side)
    else:
        difference = window(0, half, side, half) - window(0, 0, side, half)
    out: np.ndarray = difference / 2**scale
    return out


def _box2(x: np.ndarray) -> np.ndarray:
    """Means over 2 x 2 at full resolution."""
    padded = np.pad(x, ((0, 1), (0, 1)))
    out: np.ndarray = (padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]) / 4
    return out
