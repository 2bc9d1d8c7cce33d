"""The training loop of any run: exact resume from one file, a stop that loses nothing, one process or many."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codling.errors import ConfigError
from codling.training import beginning, checkpoint
from codling.training.cod_run import CoDRun
from codling.training.data import load_pictures
from codling.training.denoiser_run import DenoiserRun
from codling.training.engine import Engine, Strategy
from codling.training.log import Log, Meter
from codling.training.operations import StepCounter
from codling.training.oscar_run import OscarRun
from codling.training.recipes import DenoiserTraining, OscarTraining, RunConfig, TrainingConfig
from codling.training.run import Run
from codling.training.sources import Source, open_source
from codling.training.validation import write_sheet

CHECKPOINT, SAMPLES = "checkpoint.pt", "samples"
# Pictures of the sheet that is written at every validation, and pictures that a run may be fitted to at its start.
SHEET_ROWS, PREPARED_ON = 6, 100
RUNS: dict[type[RunConfig], type[Run[Any]]] = {
    TrainingConfig: CoDRun,
    DenoiserTraining: DenoiserRun,
    OscarTraining: OscarRun,
}


def train(
    config: RunConfig,
    directory: Path,
    *,
    device: torch.device,
    max_minutes: float | None = None,
    report: Callable[[str], None] = print,
    stage: str = "",
    begin_from: str | None = None,
    devices: int = 1,
    strategy: Strategy = "ddp",
) -> Run[Any]:
    """Train, or continue, the run in `directory` until its last step, `max_minutes`, or a termination signal.

    The directory holds `checkpoint.pt` (everything), `log.csv` and `validation.csv`, `tensorboard/`, `samples/`. A
    checkpoint of another `stage` lends its weights only. begin_from: name or directory of the model whose weights a run
    without a checkpoint begins from. devices: processes on this machine that share the batch.
    """
    begin = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    engine = Engine(device, precision=config.precision, devices=devices, strategy=strategy)
    engine.launch()
    report = report if engine.main else _silent
    run: Run[Any] = RUNS[type(config)](config, engine.device)  # type: ignore[call-arg]
    run.distribute(engine)
    new = not (directory / CHECKPOINT).exists()
    state = {} if new else _take_up(run, directory / CHECKPOINT, stage, report)
    if new and begin_from is not None:
        beginning.begin(run, begin_from)
        report(f"beginning from the weights of model {run.origin}")
    held_out = engine.together(lambda: held_out_pictures(config))
    source = engine.together(lambda: open_source(config, places=run.places, device=engine.device, state=state))
    size = sum(p.numel() for p in run.model.parameters())
    report(f"{source.description}; {size:,} parameters; {engine.precision}")
    if new and begin_from is None:
        engine.together(lambda: run.prepare(lambda: spectrum_pictures(config, source.pictures(PREPARED_ON))))
    if config.compile:
        run.compile()

    log = engine.together(lambda: Log(directory, stage=stage, step=run.step, report=report) if engine.main else None)
    deadline = None if max_minutes is None else begin + 60 * max_minutes
    try:
        with out_of_memory_explained(config), termination() as asked:
            _steps(run, source, held_out, directory, log, stage=stage, asked=asked, deadline=deadline)
    finally:
        source.close()
        if log is not None:
            log.close()
    return run


def _steps(
    run: Run[Any],
    source: Source,
    held_out: list[np.ndarray],
    directory: Path,
    log: Log | None,
    *,
    stage: str,
    asked: Callable[[], bool],
    deadline: float | None,
) -> None:
    config, meter, counter = run.config, Meter(run.config.batch), StepCounter()
    stopping, saved = run.step >= config.steps, run.step

    def save() -> None:
        nonlocal saved
        if saved != run.step:
            run.save(directory / CHECKPOINT, stage=stage, source=source.state(run.step))
            saved = run.step

    def due(every: int) -> bool:
        return run.step % every == 0 or run.step >= config.steps

    if stopping:
        return

    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(source.batch, run.step)
        while not stopping:
            # Data that cannot be read end the run in all processes, though each counts what it read itself.
            image = run.engine.together(upcoming.result)
            check_read_alike(run.engine, source)
            if run.step + 1 < config.steps:
                upcoming = ahead.submit(source.batch, run.step + 1)
            terms, operations = counter.step(run.phase, run.train_step, image)
            meter.add(terms, operations=operations * run.engine.world)
            stopping = run.step >= config.steps or run.engine.any(
                asked() or (deadline is not None and time.monotonic() > deadline)
            )
            if due(config.log_every):
                row = meter.read(steps_left=config.steps - run.step, device=run.device)
                row = run.engine.mean({"learning rate": run.learning_rate(), **row})
                if log is not None:
                    log.training(run.step, row)
            paused = time.monotonic()
            if due(config.checkpoint_every):
                save()
            if held_out and due(config.validate_every or config.checkpoint_every):
                _validate(run, held_out, directory / SAMPLES, log, stage=stage)
            meter.pause(time.monotonic() - paused)
    save()


def check_read_alike(engine: Engine, source: Source) -> None:
    """Raises ConfigError in every process unless all have read the same pictures.

    From others, or fewer, each would choose another batch, and what they train on would not be parts of one.
    """
    if engine.world == 1:
        return
    read = engine.gather(torch.tensor([source.read], device=engine.device)).tolist()
    if all(row == read[0] for row in read):
        return
    counts = ", ".join(f"process {number} read {count}" for number, (count, _) in enumerate(read))
    names = source.damage.names[:3]
    here = f"; this one could not read {', '.join(names)}" if names else ""
    raise ConfigError(
        f"training data: the processes have not read the same pictures ({counts}){here}. See that all of them can read "
        "all of the data, then give the same command again"
    )


def _validate(run: Run[Any], held_out: list[np.ndarray], directory: Path, log: Log | None, *, stage: str) -> None:
    scores, columns = run.examine(held_out, SHEET_ROWS)
    if log is None:
        return
    log.validation(run.step, scores)
    if columns:
        write_sheet(directory / f"{stage}{'-' if stage else ''}{run.step:07d}.png", columns)


def _take_up(run: Run[Any], path: Path, stage: str, report: Callable[[str], None]) -> dict[str, Any]:
    """Continue from a checkpoint, or start from the weights of one of another stage. Returns the place in the data."""
    saved = checkpoint.read(path, device=torch.device("cpu"), lazily=True)
    before = saved.get("stage", "")
    if before == stage:
        run.restore(path)
        origin = f", begun from model {run.origin}" if run.origin else ""
        report(f"continuing {path.parent} at step {run.step}{origin}")
        return saved.get("source", {})
    run.inherit(path)
    report(f"stage {stage} starts from the weights of stage {before or '(unnamed)'} (step {saved['step']})")
    return {}


def held_out_pictures(config: RunConfig) -> list[np.ndarray]:
    """Pictures for validation, none without a `validation` setting."""
    if not config.validation:
        return []
    limit = config.validation_pictures
    return load_pictures(config.validation, crop=config.crop, scales=config.scales, limit=limit).pictures


def spectrum_pictures(config: RunConfig, pictures: list[np.ndarray]) -> list[np.ndarray]:
    """What spectra are fitted on: the validation pictures, whole, where there are any; they are larger."""
    if config.validation:
        # With scales down to nothing no picture is larger than a crop could need, so none is shrunk.
        return load_pictures(config.validation, crop=1, scales=(1e-6, 1.0), limit=PREPARED_ON).pictures
    return pictures


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGTERM or Ctrl-C came; a second one stops at once."""
    came = False

    def remember(number: int, _: object) -> None:
        nonlocal came
        came = True
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {}
    for asked in (signal.SIGTERM, signal.SIGINT):
        previous[asked] = signal.signal(asked, remember)
    try:
        yield lambda: came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def out_of_memory_explained(config: RunConfig) -> Iterator[None]:
    """Memory that runs out becomes a ConfigError that says which settings to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _memory_ran_out(error):
            raise
        raise ConfigError(
            f"training: the memory does not hold batches of {config.batch} squares of {config.crop} px "
            f"({str(error).splitlines()[0]}). Lower batch or crop, train on more devices, set precision=bfloat16, or "
            "keep=memory if the pictures are in the device's memory"
        ) from error


def _memory_ran_out(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _silent(_: str) -> None:
    """The report of processes that do not write."""
