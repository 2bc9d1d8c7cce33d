"""Metrics: identity, values of independent implementations, order under growing noise, odd sizes, refusals."""

import numpy as np
import pytest
from scipy.signal import convolve2d
from scipy.stats import wasserstein_distance

from codling import swd
from codling.errors import ConfigError, ImageError
from codling.evaluation.metrics import METRICS, measure, psnr
from tests.conftest import noise_picture

HERE = ("psnr", "ms-ssim", "haarpsi", "gmsd", "swd")
PERFECT = {"psnr": np.inf, "ms-ssim": 1.0, "haarpsi": 1.0, "gmsd": 0.0, "swd": 0.0}


def photograph(height: int = 176, width: int = 200) -> np.ndarray:
    """Something with edges and texture, reproducible without a file."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (5 + 4 * c) + 0.3 * np.sin(y / 9)) * np.cos(y / (7 + 3 * c)) for c in range(3)]
    return np.clip(np.stack(waves, -1) + (noise_picture(height, width) - 128.0) / 4, 0, 255).astype(np.uint8)


def noisy(picture: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, picture.shape)
    return np.clip(picture + noise, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("name", HERE)
def test_identity(name: str) -> None:
    assert measure(photograph(), photograph(), (name,))[name] == pytest.approx(PERFECT[name], abs=1e-6)


@pytest.mark.parametrize("name", HERE)
def test_more_noise_is_worse(name: str) -> None:
    picture = photograph()
    values = [float(measure(picture, noisy(picture, d), (name,))[name]) for d in (2, 6, 15, 40)]
    assert values == sorted(values, reverse=METRICS[name].higher_is_better)
    assert len(set(values)) == 4


@pytest.mark.parametrize("shape", [(161, 163), (175, 300)])
@pytest.mark.parametrize("name", HERE)
def test_odd_sizes(name: str, shape: tuple[int, int]) -> None:
    picture = photograph(*shape)
    assert np.isfinite(float(measure(picture, noisy(picture, 9), (name,))[name]))


@pytest.mark.parametrize(
    ("deviation", "gmsd", "haarpsi"), [(5, 0.0052409943, 0.9793529626), (25, 0.0715152537, 0.7637577404)]
)
def test_values_of_another_implementation(deviation: float, gmsd: float, haarpsi: float) -> None:
    """From piq 0.8.0 on the same arrays."""
    picture = photograph()
    values = measure(picture, noisy(picture, deviation), ("gmsd", "haarpsi"))
    assert values["gmsd"] == pytest.approx(gmsd, rel=1e-4)
    assert values["haarpsi"] == pytest.approx(haarpsi, rel=1e-4)


def test_psnr_is_its_formula() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 16, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(255 / 16))


def slow_swd(reference: np.ndarray, decoded: np.ndarray) -> float:
    """The definition of `docs/evaluation.md`, patch by patch, with library convolutions and distances."""
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256

    def blur(plane: np.ndarray) -> np.ndarray:
        return convolve2d(np.pad(plane, 2, mode="reflect"), kernel, mode="valid")

    def pyramid(picture: np.ndarray) -> list[np.ndarray]:
        planes, levels = list((picture / 255).transpose(2, 0, 1)), []
        while min(planes[0].shape) >= 32:
            smaller = [blur(plane)[::2, ::2] for plane in planes]
            grown = []
            for plane, small in zip(planes, smaller, strict=True):
                spread, ones = np.zeros_like(plane), np.zeros_like(plane)
                spread[::2, ::2], ones[::2, ::2] = small, 1
                grown.append(blur(spread) / blur(ones))
            levels.append(np.stack([p - g for p, g in zip(planes, grown, strict=True)], -1))
            planes = smaller
        return [*levels, np.stack(planes, -1)]

    total = []
    for first, second in zip(pyramid(reference), pyramid(decoded), strict=True):
        rows, columns = first.shape[0] - 6, first.shape[1] - 6
        stride = max(1, int(np.ceil(np.sqrt(rows * columns / 4096))))
        cut = [
            np.array([side[r : r + 7, c : c + 7] for r in range(0, rows, stride) for c in range(0, columns, stride)])
            for side in (first, second)
        ]
        mean, deviation = cut[0].mean((0, 1, 2)), cut[0].std((0, 1, 2)) + 1e-6
        flat = [((side - mean) / deviation).reshape(len(side), -1) @ swd.directions() for side in cut]
        total.append(np.mean([wasserstein_distance(a, b) for a, b in zip(flat[0].T, flat[1].T, strict=True)]))
    return 100 * float(np.mean(total))


@pytest.mark.parametrize("shape", [(40, 57), (130, 97)])
def test_swd_is_its_slow_definition(shape: tuple[int, int]) -> None:
    picture = photograph(*shape)
    assert swd.swd(picture, noisy(picture, 12)) == pytest.approx(slow_swd(picture, noisy(picture, 12)), rel=1e-3)


def test_swd_sees_texture_and_not_its_place() -> None:
    """Another sample of the same noise is near in SWD and far in PSNR; a blurred picture the other way round."""
    picture = noisy(np.full((128, 128, 3), 128, np.uint8), 30, seed=1)
    other = noisy(np.full((128, 128, 3), 128, np.uint8), 30, seed=2)
    flat = np.full((128, 128, 3), 128, np.uint8)
    assert swd.swd(picture, other) < 0.2 * swd.swd(picture, flat)
    assert psnr(picture, other) < psnr(picture, flat) - 2


def test_nothing_is_resized() -> None:
    with pytest.raises(ImageError, match="never resized"):
        measure(photograph(176, 200), photograph(176, 201), ("psnr",))
    with pytest.raises(ImageError, match="float64"):
        measure(photograph(), photograph().astype(float), ("psnr",))


def test_unavailable_metrics_give_the_reason() -> None:
    small = noise_picture(20, 20)
    values = measure(small, small, ("psnr", "ms-ssim"))
    assert values["psnr"] == np.inf
    assert "at least 161 px" in str(values["ms-ssim"])


def test_unknown_metrics_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*ms-ssim"):
        measure(photograph(), photograph(), ("msssim",))
