"""Many files through one function: inputs and folders, or standard input and output; failures counted."""

import json
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import track

from codling.errors import CodlingError
from codling.files import files_under, write_whole
from codling.weights.catalogue import CONFIG

# In the place of a file: standard input, or output.
STANDARD = Path("-")


@dataclass(frozen=True)
class Job:
    """One file to read and the file to write."""

    source: Path
    target: Path

    def read(self) -> bytes:
        return sys.stdin.buffer.read() if self.source == STANDARD else self.source.read_bytes()

    def write(self, data: bytes, *, force: bool) -> None:
        if self.target == STANDARD:
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        else:
            write_whole(self.target, data, force=force)


def plan(inputs: list[Path], output: Path | None, *, suffixes: Iterable[str], new_suffix: str) -> list[Job]:
    """Pair inputs with outputs. Folders are searched with all their subfolders, whose structure the output keeps.

    output: None puts each result beside its source; a path ending in a suffix names the one result; else a folder.
    What is read from standard input goes to standard output unless there is one.
    Raises CodlingError on a folder with nothing in it, and on two inputs that would share an output.
    """
    wanted = tuple(suffixes)
    pairs: list[tuple[Path, Path]] = []
    for given in inputs:
        if given == STANDARD and (len(inputs) > 1 or (output is not None and output != STANDARD and not output.suffix)):
            raise CodlingError("standard input (-) is one file: name no other input, and the file to write with -o")
        if given.is_dir():
            found = files_under(given, wanted)
            if not found:
                raise CodlingError(f"no file to work on in the folder {given} (looked for {', '.join(wanted)})")
            pairs += [(path, path.relative_to(given)) for path in found]
        else:
            pairs.append((given, Path(given.name)))

    one_file = output is not None and (output == STANDARD or (output.suffix and not output.is_dir()))
    if one_file and len(pairs) > 1:
        raise CodlingError(f"{len(pairs)} files cannot all be written to {output}; name a folder")
    jobs = []
    for source, relative in pairs:
        if output is None:
            target = STANDARD if source == STANDARD else source.with_suffix(new_suffix)
        else:
            target = output if one_file else output / relative.with_suffix(new_suffix)
        jobs.append(Job(source, target))
    sources_of: dict[Path, Path] = {}
    for job in jobs:
        if job.target in sources_of:
            raise CodlingError(
                f"{sources_of[job.target]} and {job.source} would both be written to {job.target}; do one of "
                "them on its own, with another -o, or rename it"
            )
        sources_of[job.target] = job.source
    return jobs


def check_free(targets: Iterable[Path], *, force: bool) -> None:
    """Raises CodlingError, before any work, if files to write exist and `force` is not set."""
    existing = [] if force else [target for target in targets if target != STANDARD and target.exists()]
    if existing:
        others = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        verb = "exist" if others else "exists"
        raise CodlingError(f"{existing[0]}{others} {verb}; nothing is overwritten without --force")


def check_no_model(directory: Path, *, force: bool) -> None:
    """Raises CodlingError, before any work, if a directory to write holds a model and `force` is not set."""
    if (directory / CONFIG).exists() and not force:
        raise CodlingError(f"{directory} already holds a model; it is overwritten only with --force")


def check_jobs(jobs: list[Job], *, force: bool) -> None:
    """`check_free` where not one of the jobs can be done. Else those that cannot fail one by one and the others are
    done, so that a folder that was interrupted goes on. Raises CodlingError, too, where a terminal would get a file."""
    if any(job.target == STANDARD for job in jobs) and sys.stdout.isatty():
        raise CodlingError("standard output is a terminal, which is no place for a file; name one with -o")
    if all(job.target != STANDARD and job.target.exists() for job in jobs):
        check_free((job.target for job in jobs), force=force)


def run_jobs(
    jobs: list[Job],
    work: Callable[[Job], dict[str, Any]],
    *,
    as_json: bool,
    quiet: bool,
    describe: Callable[[dict[str, Any]], str],
    writes: bool = True,
) -> None:
    """Do every job, report each, and exit with status 1 if any failed: by errors of a user, of the system, or for want
    of memory. Other exceptions are bugs, and end the run.

    `work` returns a row for the report. With `as_json` all rows are printed as one JSON list. The report goes to
    standard output, or to standard error where the jobs write (`writes`) a file there.
    """
    report = sys.stderr if writes and any(job.target == STANDARD for job in jobs) else sys.stdout
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    failed = 0
    silent = quiet or as_json or len(jobs) == 1
    for job in track(jobs, console=console, disable=silent, description="", transient=True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                row = {"source": str(job.source), "target": str(job.target), **work(job)}
            except (CodlingError, OSError, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not _memory_ran_out(error):
                    raise
                failed += 1
                row = {"source": str(job.source), "error": _message(error)}
                print(f"codling: {job.source}: {_message(error)}", file=sys.stderr)
        for warning in caught:
            if issubclass(warning.category, UserWarning):
                print(f"codling: {job.source}: warning: {warning.message}", file=sys.stderr)
        rows.append(row)
        if "error" not in row and not quiet and not as_json:
            print(describe(row), file=report)
    if as_json:
        print(json.dumps(rows, indent=2), file=report)
    if failed:
        if len(jobs) > 1:
            print(f"codling: {failed} of {len(jobs)} files failed", file=sys.stderr)
        raise typer.Exit(1)


def _memory_ran_out(error: RuntimeError) -> bool:
    """Whether it is torch's: of a GPU's memory it has a class of its own, of the machine's only a message."""
    torch = sys.modules.get("torch")  # it is loaded if it raised anything
    return torch is not None and (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error))


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, MemoryError | RuntimeError):
        reason = next((f" ({line})" for line in str(error).splitlines()), "")
        return f"memory ran out{reason}; free some, choose another --device, or shrink the picture"
    return str(error)
