"""Running an evaluation: every picture to a real file, decoded from the bytes alone, measured; a run resumes.

OUT/files/ENCODING/PICTURE.avif      what the codec wrote: its length is the rate
OUT/encoded/ENCODING/PICTURE.json    how long that took, with what it depends on
OUT/decoded/SETTING/PICTURE.png      what came back
OUT/measures/SETTING/PICTURE.json    one measurement, with what it depends on

ENCODING is the setting without what only the decoder is told: a file is written once for all ways to decode it.
"""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from codling import __version__, swd
from codling.errors import CodlingError, ConfigError, ImageError
from codling.evaluation.contenders import Setting
from codling.evaluation.metrics import METRICS, UnavailableError, check_names, fetch, measure
from codling.evaluation.patches import SIZES, patch_distances
from codling.files import pictures_under, write_whole
from codling.pictures import load_picture
from codling.weights.registry import locate

# Patches a picture adds to the distance over the whole set: 24 pictures give 24,000 a level.
SET_PATCHES = 1024
# In the place of a picture's name.
WHOLE_SET = "the whole set"


@dataclass(frozen=True)
class Failure:
    """A picture that a setting could not do, or `WHOLE_SET` where its distance over all of them could not be had."""

    setting: str
    picture: str
    message: str


@dataclass(frozen=True)
class Results:
    """All measurements and what failed.

    rows: a dictionary a measurement: its setting's label and curve; the picture's file name, width and height; bytes
        and bpp of the file; encode_seconds and decode_seconds; metrics, a number each or why there is none; and key,
        what all that depends on.
    sets: per setting label, distances over the whole set.
    """

    rows: list[dict[str, Any]]
    sets: dict[str, dict[str, float | str]]
    failures: list[Failure]


def pictures_in(directory: Path) -> list[Path]:
    """The pictures of a folder, sorted. Raises ConfigError if there is none, or two would share a name."""
    found = pictures_under(directory, subfolders=False)
    stems = [path.stem for path in found]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ConfigError(f"{directory} holds several pictures named {twice[0]!r}; names must differ before the suffix")
    return found


def run(
    pictures: list[Path],
    settings: list[Setting],
    out: Path,
    *,
    metrics: tuple[str, ...],
    jobs: int,
    report: Callable[[str], None],
) -> Results:
    """Measure every setting on every picture, `jobs` at a time, and keep all of it under `out`.

    Encoders and decoders are different processes: a decoder is handed a file, never the picture. Measurements that are
    there already and depend on the same picture, codec and version are kept. Raises ModelError if a model is not to be
    had.
    """
    check_names(metrics, over_set=True)
    # Workers that fetch a hub model at the same time would write to the same files, or do so in vain.
    fetch(metrics)
    for name in dict.fromkeys(name for setting in settings for name in setting.models):
        locate(name)
    each = tuple(name for name in metrics if name in METRICS)
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    sets: dict[str, dict[str, float | str]] = {}

    def fail(setting: Setting, picture: str, error: Exception) -> None:
        failures.append(Failure(setting.label, picture, described(error)))
        report(f"failed: {setting.label} on {picture}: {described(error)}")

    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(jobs, context, _one_thread, (jobs,)) as encoders,
        ProcessPoolExecutor(jobs, context, _one_thread, (jobs,)) as decoders,
        ThreadPoolExecutor(jobs) as threads,
    ):
        for setting in settings:
            chains = {
                threads.submit(_chain, picture, setting, out, each, encoders, decoders): picture for picture in pictures
            }
            done: list[dict[str, Any]] = []
            for chain in as_completed(chains):
                try:
                    done.append(chain.result())
                except Exception as error:  # whatever a codec raises must not end the other codecs' run
                    fail(setting, chains[chain].name, error)
            done.sort(key=lambda row: row["picture"])
            rows += done
            names = {row["picture"] for row in done}
            pairs = [(p, _paths(p, setting, out).decoded) for p in pictures if p.name in names]
            if pairs:
                try:
                    sets[setting.label] = encoders.submit(set_distances, pairs, metrics).result()
                except Exception as error:  # a worker that the system killed, for one, breaks all of them
                    fail(setting, WHOLE_SET, error)
            if done:
                report(_line(setting, done))
    return Results(rows, sets, failures)


def described(error: Exception) -> str:
    """An error as text, with its kind if it is none of codling's own, whose messages say enough."""
    return str(error) if isinstance(error, CodlingError) else f"{type(error).__name__}: {error}"


def set_distances(pairs: list[tuple[Path, Path]], metrics: tuple[str, ...]) -> dict[str, float | str]:
    """Distances of all originals from all decoded pictures, each set pooled; for an unavailable one, the reason.

    `swd-set` comes with the metric swd, the patch distances of a size with fid-64 or fid-256.
    """
    values: dict[str, float | str] = {}
    if "swd" in metrics:
        sides = [[swd.patches(load_picture(pair[side]).rgb, SET_PATCHES) for pair in pairs] for side in (0, 1)]
        values["swd-set"] = swd.compare(sides[0], sides[1])
    for size in SIZES:
        if f"fid-{size}" in metrics:
            try:
                values |= patch_distances(pairs, size=size)
            except (UnavailableError, ImageError) as error:
                values[f"fid-{size}"] = str(error)
    return values


def _chain(
    picture: Path, setting: Setting, out: Path, metrics: tuple[str, ...], encoders: Executor, decoders: Executor
) -> dict[str, Any]:
    """One picture through encoder, decoder and metrics, each in its process, unless it has been measured before."""
    file, encoded, decoded, record = _paths(picture, setting, out)
    # The fingerprint may load a model, which belongs into a worker.
    key = encoders.submit(_key, picture, setting).result()
    row = _stored(record, key)
    if row is None or not decoded.exists():
        encode_seconds = encoders.submit(_encode, picture, setting.encoding, file, encoded).result()
        decode_seconds = decoders.submit(_decode, file, setting, decoded).result()
        row = {"encode_seconds": encode_seconds, "decode_seconds": decode_seconds, "metrics": {}}
    missing = tuple(name for name in metrics if not isinstance(row["metrics"].get(name), float))
    if missing or "bytes" not in row:
        size, values = encoders.submit(_measure, picture, decoded, missing).result()
        length = file.stat().st_size
        row |= {
            "setting": setting.label, "curve": setting.curve, "picture": picture.name, "width": size[0],
            "height": size[1], "bytes": length, "bpp": 8 * length / (size[0] * size[1]), "key": key,
            "metrics": row["metrics"] | values,
        }  # fmt: skip
        write_whole(record, json.dumps(row, indent=1).encode(), force=True)
    return row


class _Paths(NamedTuple):
    """Where what is known of a picture at a setting lies."""

    file: Path
    encoded: Path
    decoded: Path
    record: Path


def _paths(picture: Path, setting: Setting, out: Path) -> _Paths:
    encoding = setting.encoding.folder
    return _Paths(
        out / "files" / encoding / f"{picture.stem}{setting.suffix}",
        out / "encoded" / encoding / f"{picture.stem}.json",
        out / "decoded" / setting.folder / f"{picture.stem}.png",
        out / "measures" / setting.folder / f"{picture.stem}.json",
    )


def _key(picture: Path, setting: Setting) -> dict[str, str]:
    original = load_picture(picture).rgb
    return {
        "sha256": hashlib.sha256(repr(original.shape).encode() + original.tobytes()).hexdigest(),
        "codec": setting.fingerprint(),
        "codling": __version__,
    }


def _stored(record: Path, key: dict[str, str]) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = json.loads(record.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return row if row.get("key") == key else None


def _encode(picture: Path, encoding: Setting, file: Path, encoded: Path) -> float:
    """Write the file unless another way to decode it had it written; returns the seconds that it took."""
    key = _key(picture, encoding)
    noted = _stored(encoded, key)
    if noted is not None and file.exists():
        return float(noted["encode_seconds"])
    begin = time.perf_counter()
    data = encoding.encode(picture)
    seconds = time.perf_counter() - begin
    write_whole(file, data, force=True)
    write_whole(encoded, json.dumps({"key": key, "encode_seconds": seconds}).encode(), force=True)
    return seconds


def _decode(file: Path, setting: Setting, decoded: Path) -> float:
    data = file.read_bytes()
    begin = time.perf_counter()
    picture = setting.decode(data)
    seconds = time.perf_counter() - begin
    buffer = BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=1)
    write_whole(decoded, buffer.getvalue(), force=True)
    return seconds


def _measure(picture: Path, decoded: Path, metrics: tuple[str, ...]) -> tuple[tuple[int, int], dict[str, float | str]]:
    original = load_picture(picture).rgb
    return (original.shape[1], original.shape[0]), measure(original, load_picture(decoded).rgb, metrics)


def _line(setting: Setting, done: list[dict[str, Any]]) -> str:
    means = _means(done)
    return f"{setting.label:<28}{np.mean([row['bpp'] for row in done]):>8.4f} bpp   " + "   ".join(means)


def _means(done: list[dict[str, Any]]) -> Iterator[str]:
    """Of the metrics that all rows have: what an earlier run measured may have been asked of some pictures only."""
    for name in done[0]["metrics"]:
        if any(name not in row["metrics"] for row in done):
            continue
        values = [row["metrics"][name] for row in done]
        reasons = [value for value in values if not isinstance(value, float)]
        yield f"{name} unavailable ({reasons[0]})" if reasons else f"{name} {np.mean(values):.4g}"


def _one_thread(jobs: int) -> None:
    """Workers side by side take a thread each; a single worker may use the whole machine."""
    import torch

    if jobs > 1:
        torch.set_num_threads(1)
