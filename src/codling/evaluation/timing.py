"""Time of a setting, measured alone: a fresh process, a warm-up, medians over pictures, and its peak memory."""

import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from codling.evaluation.contenders import Setting

REPEATS = 3


@dataclass(frozen=True)
class Timing:
    """Medians in seconds, whole file to whole picture; torch threads used; peak memory of the process in bytes."""

    encode_seconds: float
    decode_seconds: float
    threads: int
    peak_bytes: int


def time_setting(setting: Setting, pictures: list[Path]) -> Timing:
    """Encode and decode each picture `REPEATS` times after a warm-up."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_time, setting, pictures).result()


def _time(setting: Setting, pictures: list[Path]) -> Timing:
    import torch

    setting.decode(setting.encode(pictures[0]))
    encodes, decodes = [], []
    for picture in pictures:
        for _ in range(REPEATS):
            begin = time.perf_counter()
            data = setting.encode(picture)
            between = time.perf_counter()
            setting.decode(data)
            encodes.append(between - begin)
            decodes.append(time.perf_counter() - between)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Timing(statistics.median(encodes), statistics.median(decodes), torch.get_num_threads(), peak)
