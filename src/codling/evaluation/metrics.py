"""Distances between pictures, always on 8-bit pictures of the same size."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from codling.configuration import suggest
from codling.errors import CodlingError, ConfigError, ImageError, ModelError
from codling.evaluation.similarity import gmsd, haarpsi
from codling.swd import swd

if TYPE_CHECKING:
    import torch

    from codling.perceptual import Perceptual

MS_SSIM_SMALLEST = 161


class UnavailableError(CodlingError):
    """A metric cannot be computed here; the message says how to get what it needs."""


def psnr(reference: np.ndarray, decoded: np.ndarray) -> float:
    """PSNR in dB over all channels; infinite for equal pictures."""
    error = float(np.square(reference.astype(np.float64) - decoded).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ms_ssim(reference: np.ndarray, decoded: np.ndarray) -> float:
    """MS-SSIM of pytorch-msssim with its defaults, mean of the RGB channels. Sides must exceed 160 px."""
    if min(reference.shape[:2]) < MS_SSIM_SMALLEST:
        raise UnavailableError(
            f"MS-SSIM needs sides of at least {MS_SSIM_SMALLEST} px, got {reference.shape[1]} x {reference.shape[0]}"
        )
    try:
        from pytorch_msssim import ms_ssim as library
    except ImportError:
        raise UnavailableError("MS-SSIM needs pytorch-msssim: pip install 'codling[eval]'") from None
    return float(library(_tensor(reference, 1.0), _tensor(decoded, 1.0), data_range=255))


def lpips(reference: np.ndarray, decoded: np.ndarray, *, network: Literal["alex", "vgg"]) -> float:
    """LPIPS (Zhang et al. 2018), version 0.1, with the network named: "alex" and "vgg" are different scales."""
    from codling.perceptual import load_lpips

    return _seen(lambda device: load_lpips(network, device), reference, decoded)


def dists(reference: np.ndarray, decoded: np.ndarray) -> float:
    """DISTS (Ding et al. 2020)."""
    from codling.perceptual import load_dists

    return _seen(load_dists, reference, decoded)


def _seen(load: "Callable[[torch.device], Perceptual]", reference: np.ndarray, decoded: np.ndarray) -> float:
    import torch

    try:
        # Outside of the inference mode: a network made in it is kept, and could give training no gradient any more.
        network = load(torch.device("cpu"))
        with torch.inference_mode():
            return float(network(_unit(decoded), _unit(reference)))
    except (ModelError, ImageError) as error:
        raise UnavailableError(str(error)) from error


@dataclass(frozen=True)
class Metric:
    """A distance of two pictures. `title` is for axes and tables, with its unit; `higher_is_better` its direction."""

    title: str
    compute: Callable[[np.ndarray, np.ndarray], float]
    higher_is_better: bool


METRICS: Mapping[str, Metric] = {
    "psnr": Metric("PSNR, dB", psnr, True),
    "ms-ssim": Metric("MS-SSIM", ms_ssim, True),
    "haarpsi": Metric("HaarPSI", haarpsi, True),
    "gmsd": Metric("GMSD", gmsd, False),
    "swd": Metric("SWD", swd, False),
    "lpips-alex": Metric("LPIPS (alex)", lambda a, b: lpips(a, b, network="alex"), False),
    "lpips-vgg": Metric("LPIPS (vgg)", lambda a, b: lpips(a, b, network="vgg"), False),
    "dists": Metric("DISTS", dists, False),
}
# Metrics with networks whose weights are downloaded once.
LEARNED_METRICS = ("lpips-alex", "lpips-vgg", "dists")
# Metrics of whole sets, see `patches`; each comes with the KID of the same patches.
SET_METRICS = ("fid-64", "fid-256")
DEFAULT_METRICS = ("psnr", "ms-ssim", "swd")


def check_names(names: tuple[str, ...], *, over_set: bool = False) -> None:
    """Raises ConfigError on a metric that does not exist; those of whole sets count with `over_set` only."""
    known = (*METRICS, *SET_METRICS) if over_set else tuple(METRICS)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown metric {name!r}{suggest(name, known)}; there are {', '.join(known)}")


def measure(reference: np.ndarray, decoded: np.ndarray, names: tuple[str, ...]) -> dict[str, float | str]:
    """The named distances of (H, W, 3) uint8 pictures; for an unavailable one, the reason instead of a number.

    Raises ImageError if sizes or types differ: nothing is ever resized.
    """
    check_names(names)
    if reference.shape != decoded.shape or reference.dtype != np.uint8 or decoded.dtype != np.uint8:
        raise ImageError(
            f"wanted two uint8 pictures of one size, got {reference.dtype} {reference.shape} and "
            f"{decoded.dtype} {decoded.shape}; pictures are never resized to be compared"
        )
    values: dict[str, float | str] = {}
    for name in names:
        try:
            values[name] = METRICS[name].compute(reference, decoded)
        except UnavailableError as error:
            values[name] = str(error)
    return values


def fetch(names: tuple[str, ...]) -> None:
    """Download what the named metrics need; where it cannot be had, measuring says so."""
    from codling.perceptual import SMALLEST_SIDE

    blank = np.zeros((SMALLEST_SIDE, SMALLEST_SIDE, 3), np.uint8)
    measure(blank, blank, tuple(name for name in names if name in LEARNED_METRICS))


def _tensor(picture: np.ndarray, divisor: float):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / divisor


def _unit(picture: np.ndarray):  # type: ignore[no-untyped-def]
    """[-1, 1], which LPIPS expects."""
    return _tensor(picture, 127.5) - 1
