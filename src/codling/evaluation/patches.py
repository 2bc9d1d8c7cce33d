"""FID and KID between the patches of two sets of pictures.

The protocol of HiFiC and MS-ILLM: all whole patches of S x S pixels on a grid from the top left corner, and those on
the grid shifted by half a patch along both axes; Inception features of 2048 numbers. S = 64 is CoD's choice for Kodak,
256 the usual one. With few patches both are biased: compare values from the same pictures only.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codling.errors import ImageError
from codling.evaluation.metrics import UnavailableError
from codling.pictures import load_picture

if TYPE_CHECKING:
    from torch.nn import Module

SIZES = (64, 256)
BATCH = 64
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
FEATURES = 2048


def patch_distances(pairs: list[tuple[Path, Path]], *, size: int, features: "Module | None" = None) -> dict[str, float]:
    """`fid-SIZE` and `kid-SIZE` (x 1000) of (original, decoded) files.

    features: maps uint8 (N, 3, S, S) to (N, F); None is Inception. Raises UnavailableError if it cannot be had, and
    ImageError if the pictures have fewer patches than a distance needs.
    """
    try:
        import torch
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        # Metrics are asked for float64: FID subtracts nearly equal numbers.
        fid = FrechetInceptionDistance(feature=features or FEATURES).set_dtype(torch.float64)
        count = sum(len(patches(load_picture(original).rgb, size)) for original, _ in pairs)
        if count < 2:
            raise ImageError(f"FID and KID of {size} px patches need at least 2 of them, the pictures have {count}")
        kid = KernelInceptionDistance(
            feature=features or FEATURES, subsets=KID_SUBSETS, subset_size=min(KID_SUBSET_SIZE, count)
        )
    except (ImportError, OSError) as error:
        raise UnavailableError(
            "FID and KID need torchmetrics, torch-fidelity and Inception weights that it downloads: "
            f"pip install 'codling[eval]' torch-fidelity ({str(error).splitlines()[0]})"
        ) from error
    for side, real in ((0, True), (1, False)):
        for batch in _batches([pair[side] for pair in pairs], size):
            tensor = torch.from_numpy(batch).permute(0, 3, 1, 2)
            fid.update(tensor, real=real)
            kid.update(tensor, real=real)
    # KID draws its subsets from torch's global generator; the fork keeps that from anyone else, the seed makes it ours.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kernel = float(kid.compute()[0])
    return {f"fid-{size}": float(fid.compute()), f"kid-{size}": 1000 * kernel}


def patches(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) -> (N, size, size, 3): the grid, then the shifted grid."""
    found = []
    for start in (0, size // 2):
        rows, columns = ((side - start) // size for side in picture.shape[:2])
        if rows > 0 and columns > 0:
            grid = picture[start : start + rows * size, start : start + columns * size]
            found.append(grid.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3))
    return np.concatenate(found) if found else np.zeros((0, size, size, 3), np.uint8)


def _batches(files: list[Path], size: int) -> Iterator[np.ndarray]:
    for file in files:
        whole = patches(load_picture(file).rgb, size)
        for start in range(0, len(whole), BATCH):
            yield whole[start : start + BATCH]
