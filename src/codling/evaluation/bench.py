"""The speed table: the rows of "numbers to hold" that exist so far, measured in fresh processes where it matters."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from codling import api, batches
from codling.codecs.base import Codec
from codling.codecs.cod import CoDCodec
from codling.codecs.search import gpu_search
from codling.errors import ConfigError
from codling.evaluation.channel_bench import (
    candidates_per_second,
    coders,
    gpu_candidates_per_second,
    gpu_coders,
    library_candidates_per_second,
    step_seconds,
)
from codling.pictures import load_picture
from codling.weights.catalogue import DEFAULT_MODEL, LEVEL_MODEL, RATE_MODEL
from codling.weights.registry import load

REPEATS = 5
# Pictures that a GPU is given at once.
BATCH = 16

# Encodes and decodes argv[1] with one step in a fresh process and prints median seconds and peak memory.
ROUND_TRIP = """
import json, resource, statistics, sys, time
from codling import api
codec, times = api.load(sys.argv[2], device="cpu"), []
for _ in range(1 + int(sys.argv[3])):
    begin = time.perf_counter()
    data = api.encode(sys.argv[1], model=codec)
    api.decode(data, model=codec, steps=1)
    times.append(time.perf_counter() - begin)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([statistics.median(times[1:]), peak * (1 if sys.platform == "darwin" else 1024)]))
"""

# Encodes argv[1] with model argv[2] to .03 bpp, a square of it and the whole: [size, seconds, seconds, share, bytes].
DIFFC_TRIP = """
import cProfile, json, pstats, resource, sys, time
from codling import api
from codling.pictures import load_picture
codec, rows = api.load(sys.argv[2], device="cpu"), []
whole = load_picture(sys.argv[1]).rgb
for picture in (whole[:512, :512], whole):
    api.encode(picture, model=codec, bpp=0.03)
    profile, begin = cProfile.Profile(), time.perf_counter()
    data = profile.runcall(api.encode, picture, model=codec, bpp=0.03)
    encoded = time.perf_counter() - begin
    channel = sum(row[3] for where, row in pstats.Stats(profile).stats.items() if where[2] in ("send", "receive"))
    begin = time.perf_counter()
    api.decode(data, model=codec, steps=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    size = f"{picture.shape[1]}x{picture.shape[0]}"
    rows.append([size, encoded, time.perf_counter() - begin, channel / encoded, peak])
print(json.dumps(rows))
"""


@dataclass(frozen=True)
class Row:
    """A measured number beside its target; `holds` is None where there is no target."""

    what: str
    measured: str
    target: str
    holds: bool | None


def machine() -> str:
    """Processor, cores, system and versions in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def bench(model: str, photos: list[Path]) -> Iterator[Row]:
    """Measure row by row. `photos` are 768 x 512 or so; the first is used for timing.

    Raises ConfigError, before the first row, unless it is a CoD model.
    """
    codec = load(model, device=torch.device("cpu"))
    if not isinstance(codec, CoDCodec):
        raise ConfigError(
            f"model {model} is of codec {codec.codec_id.name.lower()}, wanted one of codec cod, like {DEFAULT_MODEL}; "
            f"{RATE_MODEL} and {LEVEL_MODEL} have rows of their own with any"
        )
    seconds = _process_seconds([sys.executable, "-c", "import codling"]) - _process_seconds([sys.executable, "-c", ""])
    yield Row("import codling", f"{seconds:.3f} s", "< 0.3 s", seconds < 0.3)

    files = [api.encode(photo, model=codec) for photo in photos]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.roe"
        path.write_bytes(files[0])
        seconds = _process_seconds([sys.executable, "-m", "codling", "info", str(path)])
    yield Row("codling info x.roe", f"{seconds:.3f} s", "< 0.5 s", seconds < 0.5)

    yield from round_trip(model, photos[0])

    saved = np.array([_saved_share(data, photo, codec) for data, photo in zip(files, photos, strict=True)])
    yield Row(
        f"index bits saved against fixed length, {len(photos)} photographs",
        f"{100 * saved.mean():.1f}% ({100 * saved.min():.1f} to {100 * saved.max():.1f})",
        "> 8%",
        bool(saved.mean() > 0.08),
    )
    overhead = max(api.info(data).header_bytes for data in files) + 1
    yield Row("container overhead, index mode byte included", f"{overhead} bytes", "<= 14 bytes", overhead <= 14)


def round_trip(model: str, photo: Path) -> Iterator[Row]:
    """Encoding a photograph and decoding it in one step, in a fresh process.

    Models with a finisher, like cod-xs, decode with that by default; it takes more time and is not in this figure.
    """
    command = [sys.executable, "-c", ROUND_TRIP, str(photo), model, str(REPEATS)]
    trip, peak = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    height, width = load_picture(photo).rgb.shape[:2]
    yield Row(f"{model}, {width}x{height}, 1 step: encode + decode, warm", f"{trip:.2f} s", "< 1.0 s", trip < 1.0)
    yield Row("peak memory of that process", f"{peak / 1e9:.2f} GB", "< 1.5 GB", peak < 1.5e9)


def bench_batch(model: str, photo: Path) -> Iterator[Row]:
    """An OSCAR model on a GPU, `BATCH` times the same photograph at once, or why not."""
    if not torch.cuda.is_available():
        yield Row(f"{model}, {BATCH} pictures at once on a GPU", "not available: torch sees no GPU", "", None)
        return
    picture, name = load_picture(photo).rgb, torch.cuda.get_device_name()
    seconds = batch_seconds(api.load(model, device="cuda"), picture, BATCH)
    for way, found in zip(("encode", "decode"), seconds, strict=True):
        what = f"{model}, {BATCH} of {picture.shape[1]}x{picture.shape[0]} at once, {name}: {way}"
        yield Row(what, f"{BATCH / found:.1f} pictures / s", "", None)


def batch_seconds(codec: Codec, picture: np.ndarray, count: int) -> tuple[float, float]:
    """Medians of encoding and of decoding so many times the same picture (H, W, 3) at once."""
    files = batches.encode_batch([picture] * count, model=codec)
    return (
        _median(lambda: batches.encode_batch([picture] * count, model=codec)),
        _median(lambda: batches.decode_batch(files, model=codec)),
    )


def bench_diffc(model: str, photo: Path) -> Iterator[Row]:
    """DiffC: the channel coder alone, then a 512 x 512 crop of the photograph to .03 bpp and the whole of it."""
    threads = torch.get_num_threads()
    rate = candidates_per_second(threads)
    yield Row(
        f"candidates drawn and multiplied, {threads} threads", f"{rate / 1e9:.2f}e9 / s", "> 1.5e9 / s", rate > 1.5e9
    )
    library = library_candidates_per_second()
    yield Row("the same by numpy's generator and product", f"{library / 1e9:.2f}e9 / s", "", None)
    for memory in (10, 12, 14):
        seconds = step_seconds(threads, memory)
        yield Row(f"8,000 groups of 1 or 2, 1 bit each, {1 << memory:,} states", f"{seconds:.3f} s", "", None)
    for row in coders(threads):
        said = f"{row.effective:.3f} ({row.seconds:.2f} s a kbit)"
        yield Row(f"effective bits over bits sent, {row.coder}", said, "", None)
    yield from _gpu_rows()

    command = [sys.executable, "-c", DIFFC_TRIP, str(photo), model]
    for side, encoded, decoded, share, peak in json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ):
        yield Row(f"{model}, {side}, .03 bpp: encode, warm", f"{encoded:.2f} s", "< 30 s", encoded < 30)
        yield Row(f"{model}, {side}: decode", f"{decoded:.2f} s", "< 10 s", decoded < 10)
        yield Row("of the encoding, channel coding", f"{100 * share:.0f}%", "< 25%", share < 0.25)
        yield Row("peak memory of that process so far", f"{peak / 1e9:.2f} GB", "", None)


def _gpu_rows() -> Iterator[Row]:
    """The channel coder on a GPU, or why not."""
    if not torch.cuda.is_available():
        yield Row("channel coding by Triton", "not available: torch sees no GPU", "", None)
        return
    gpu = gpu_search(torch.device("cuda"))
    if gpu is None:
        yield Row("channel coding by Triton", "not available: missing, or does not work here", "", None)
        return
    name = torch.cuda.get_device_name()
    rate = gpu_candidates_per_second(gpu)
    yield Row(f"candidates drawn and multiplied, Triton, {name}", f"{rate / 1e9:.2f}e9 / s", "", None)
    for row in gpu_coders(gpu):
        said = f"{row.effective:.3f} ({row.seconds:.3f} s a kbit)"
        yield Row(f"effective bits over bits sent, {row.coder}, Triton", said, "", None)


def _saved_share(data: bytes, photo: Path, codec: CoDCodec) -> float:
    """Share of a file's index bytes that entropy coding saved over fixed-width indices, whole bytes."""
    config = codec.model.config
    height, width = (
        -(-side // config.grid) * config.grid // config.condition.stride for side in load_picture(photo).rgb.shape[:2]
    )
    fixed = -(-height * width * (config.condition.codebook_size - 1).bit_length() // 8)
    return 1 - (len(data) - api.info(data).header_bytes - 1) / fixed


def _process_seconds(command: list[str]) -> float:
    return _median(lambda: subprocess.run(command, capture_output=True, check=True))


def _median(action: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])
