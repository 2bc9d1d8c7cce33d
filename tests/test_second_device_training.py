"""Training on another device than the CPU: data, networks, losses and optimisers meet on one device."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.tensor  # its annotations want torch's own generator, which is replaced below

from codling.training.augment import augmented
from codling.training.cod_run import CoDRun
from codling.training.denoiser_run import DenoiserRun
from codling.training.engine import Engine
from codling.training.oscar_run import OscarRun
from codling.training.recipes import DenoiserTraining, oscar_weights
from codling.training.run import Run
from tests import tiny_oscar
from tests.conftest import noise_picture, tiny_config
from tests.second_device import DEVICE, SecondDevice
from tests.training import CPU, tiny_run

NOWHERE = Path()
WEIGHTS = {**oscar_weights(), "adversarial": 0.1, "sliced": 1.0, "sampled": 0.1}
RUNS: dict[str, Callable[[], Run[object]]] = {  # type: ignore[type-var]
    "cod": lambda: CoDRun(tiny_run(NOWHERE, crop=64), DEVICE),
    "cod with a learned null condition": lambda: CoDRun(
        tiny_run(NOWHERE, crop=64, model=tiny_config(null="learned"), null_condition=0.5, one_step_pass=True), DEVICE
    ),
    "tokens": lambda: OscarRun(tiny_oscar.tiny_run(NOWHERE, crop=64, restore_from=None), DEVICE),
    "restoration": lambda: OscarRun(
        tiny_oscar.tiny_run(NOWHERE, crop=64, jump_share=0.3, finish_share=0.3, weights=WEIGHTS), DEVICE
    ),
    "denoiser": lambda: DenoiserRun(DenoiserTraining(data="", crop=64, batch=4, warmup=2, walk_share=0.5), DEVICE),
}


class OnCPU(torch.Generator):
    """A generator of the stand-in draws where its values are."""

    def __new__(cls, _: object = None) -> "OnCPU":
        return super().__new__(cls, "cpu")


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_works_on_another_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Engine.__init__

    def on_cpu(self: Engine, _: torch.device, *, precision: str) -> None:
        begin(self, CPU, precision=precision)

    # There is no engine for the stand-in.
    monkeypatch.setattr(Engine, "__init__", on_cpu)
    monkeypatch.setattr(Engine, "device", DEVICE)
    monkeypatch.setattr(torch, "Generator", OnCPU)
    pictures = [noise_picture(90, 100, seed=seed) for seed in range(4)]
    with SecondDevice():
        held = [torch.from_numpy(picture).to(DEVICE) for picture in pictures]
        rngs = [np.random.default_rng(seed) for seed in range(4)]
        batch = augmented(held, rngs, crop=64, scales=(0.7, 1.3), device=DEVICE)
        assert batch.device == DEVICE
        run = RUNS[name]()
        before = [parameter.cpu() for parameter in run.model.parameters()]
        for _ in range(2):
            assert all(np.isfinite(value) for value in run.train_step(batch).values())
        moved = [not torch.equal(old, new.cpu()) for old, new in zip(before, run.model.parameters(), strict=True)]
        assert any(moved)
        assert run.validate(pictures[:2])
