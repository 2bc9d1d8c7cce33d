"""What a run writes down: a line on the screen, a row of a CSV, points of TensorBoard's curves."""

import csv
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from codling.errors import ConfigError

LOG, VALIDATION, CURVES = "log.csv", "validation.csv", "tensorboard"


class Log:
    """The log of a stage in a run's directory. Rows later than the step it goes on from are of a lost try: they go."""

    def __init__(self, directory: Path, *, stage: str, step: int, report: Callable[[str], None]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(f"training writes TensorBoard curves: pip install 'codling[train]' ({error})") from error
        self.directory, self.stage, self.report = directory, stage, report
        self.curves = SummaryWriter(str(directory / CURVES / stage), purge_step=step + 1)  # type: ignore[no-untyped-call]
        for name in (LOG, VALIDATION):
            forget(directory / name, stage=stage, after=step)

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Means since the last row: learning rate, speed, memory, terms."""
        self._write(LOG, step, values)
        self.report("  ".join(f"{name} {value:.4g}" for name, value in {"step": step, **values}.items()))

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Scores of the averaged model."""
        self._write(VALIDATION, step, scores)
        self.report(f"step {step}: " + ", ".join(f"{name} {value:.2f}" for name, value in scores.items()))

    def _write(self, file: str, step: int, values: Mapping[str, float]) -> None:
        append(
            self.directory / file, {"step": str(step), "stage": self.stage} | {k: f"{v:.6g}" for k, v in values.items()}
        )
        for name, value in values.items():
            self.curves.add_scalar(f"{Path(file).stem}/{name}", value, step)  # type: ignore[no-untyped-call]
        self.curves.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self.curves.close()  # type: ignore[no-untyped-call]


def append(path: Path, row: Mapping[str, str]) -> None:
    """Add a row to a CSV. Columns that it did not have yet are added to all rows."""
    known = columns_of(path)
    columns = [*known, *(name for name in row if name not in known)]
    if columns != known:
        _rewrite(path, columns, read(path))
    with path.open("a", newline="") as file:
        csv.DictWriter(file, columns, restval="").writerow(row)


def forget(path: Path, *, stage: str, after: int) -> None:
    """Remove the rows of a stage that are later than a step."""
    rows = read(path)
    kept = [row for row in rows if row["stage"] != stage or int(row["step"]) <= after]
    if len(kept) < len(rows):
        _rewrite(path, list(rows[0]), kept)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, none of one that does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def columns_of(path: Path) -> list[str]:
    """The columns of a CSV, none of one that does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


def _rewrite(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        # A row that was cut off by a crash, and so runs into the next, can have more fields than there are columns.
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


class Meter:
    """Speed and means of the terms since the last reading."""

    def __init__(self, batch: int):
        self.batch = batch
        self.reset()

    def reset(self) -> None:
        self.since, self.steps = time.monotonic(), 0
        self.terms: dict[str, list[float]] = {}
        self.operations = 0

    def add(self, terms: Mapping[str, float], *, operations: int) -> None:
        """The terms of one step, and what it computed, see `operations`."""
        self.steps += 1
        self.operations += operations
        for name, term in terms.items():
            self.terms.setdefault(name, []).append(term)

    def pause(self, seconds: float) -> None:
        """Time that was spent on other things than steps."""
        self.since += seconds

    def read(self, *, steps_left: int, device: torch.device) -> dict[str, float]:
        """pictures/s, TFLOP/s, memory in GB (the most so far; of a GPU or of the process), minutes left, terms."""
        seconds = (time.monotonic() - self.since) / self.steps
        values = {
            "pictures/s": self.batch / seconds,
            "TFLOP/s": self.operations / self.steps / seconds / 1e12,
            "memory GB": peak_memory(device) / 1e9,
            "minutes left": steps_left * seconds / 60,
            # Of the steps that had the term: some begin in the midst of a run.
            **{name: sum(values) / len(values) for name, values in self.terms.items()},
        }
        self.reset()
        return values


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
