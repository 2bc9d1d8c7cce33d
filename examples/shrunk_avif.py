"""What a patient engineer gets from AVIF within a budget: shrink the picture, code it, enlarge it, keep the best.

    python examples/shrunk_avif.py 400,600,800 PICTURE...

For each picture and budget, among eleven factors and sixteen qualities, the file of the highest PSNR that is not longer
than the budget; printed are means over the pictures that have one: bytes, PSNR, MS-SSIM, SWD. MS-SSIM needs the extra
`eval` (pip install 'codling[eval]') and sides over 160 px; a smaller picture makes its mean nan.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codling.evaluation.contenders import Setting, parse_spec
from codling.evaluation.metrics import DEFAULT_METRICS, MS_SSIM_SMALLEST, measure, psnr
from codling.pictures import load_picture

FACTORS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
QUALITIES = range(0, 64, 4)


@dataclass(frozen=True)
class File:
    """bytes: its length. psnr: in dB. setting: that made it."""

    bytes: int
    psnr: float
    setting: Setting


def files(path: Path, longest: int) -> list[File]:
    """The picture's files of at most so many bytes, at every factor and quality."""
    picture, found = load_picture(path).rgb, []
    for factor in FACTORS:
        for quality in QUALITIES:
            (setting,) = parse_spec(f"avif/{factor}:quality={quality}:speed=2")
            data = setting.encode(path)
            if len(data) > longest:
                break  # those of higher quality are longer
            found.append(File(len(data), psnr(picture, np.asarray(setting.decode(data))), setting))
    return found


def best(candidates: list[File], budget: int) -> File | None:
    """Of the files within a budget the one of the highest PSNR, None if all are longer."""
    return max((file for file in candidates if file.bytes <= budget), key=lambda file: file.psnr, default=None)


def check_metrics() -> None:
    """Exit with the reason where a metric cannot be had here: on a picture large enough for all, before any coding."""
    blank = np.zeros((MS_SSIM_SMALLEST, MS_SSIM_SMALLEST, 3), np.uint8)
    for value in measure(blank, blank, DEFAULT_METRICS).values():
        if isinstance(value, str):
            sys.exit(value)


def row(path: Path, chosen: File) -> list[float]:
    """Bytes and distances of the picture's chosen file; NaN for one that a picture so small has not."""
    decoded = np.asarray(chosen.setting.decode(chosen.setting.encode(path)))
    distances = measure(load_picture(path).rgb, decoded, DEFAULT_METRICS).values()
    return [chosen.bytes, *(np.nan if isinstance(value, str) else value for value in distances)]


if __name__ == "__main__":
    check_metrics()
    budgets, paths = [int(text) for text in sys.argv[1].split(",")], [Path(name) for name in sys.argv[2:]]
    rows: dict[int, list[list[float]]] = {budget: [] for budget in budgets}
    for path in paths:
        candidates = files(path, max(budgets))
        for budget, chosen in ((budget, best(candidates, budget)) for budget in budgets):
            if chosen:
                rows[budget].append(row(path, chosen))
    for budget, found in rows.items():
        means = "".join(f"{value:9.3f}" for value in np.mean(found, 0)) if found else "  none is so small"
        print(f"within {budget:5} bytes, {len(found)} of {len(paths)} pictures:{means}")
