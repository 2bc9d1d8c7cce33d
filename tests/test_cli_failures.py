"""One file that fails does not end the run of a folder, but a bug does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

from codling.cli.decode import picture_bytes
from codling.cli.files import Job, run_jobs
from codling.errors import ConfigError, FormatError

CPU_MEMORY = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"


def run(error: BaseException, *, as_json: bool = False) -> None:
    """Three jobs, of which the second fails."""

    def work(job: Job) -> dict[str, Any]:
        if job.source.name == "1":
            raise error
        return {}

    jobs = [Job(Path(str(number)), Path(f"{number}.roe")) for number in range(3)]
    run_jobs(jobs, work, as_json=as_json, quiet=False, describe=lambda row: f"did {row['source']}")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FormatError("no stream"), "1: no stream"),
        (FileNotFoundError(2, "No such file", "1"), "1: No such file: 1"),
        (MemoryError(), "1: memory ran out; free some, choose another --device, or shrink the picture"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "1: memory ran out (CUDA out of memory.); free some"),
        (RuntimeError(CPU_MEMORY), "can't allocate memory: you tried to allocate 9); free some"),
    ],
)
def test_the_others_are_done(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        run(error)
    output = capsys.readouterr()
    assert output.out.splitlines() == ["did 0", "did 2"]
    assert said in output.err
    assert "1 of 3 files failed" in output.err
    with pytest.raises(typer.Exit):
        run(error, as_json=True)
    assert said.removeprefix("1: ") in json.loads(capsys.readouterr().out)[1]["error"]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("bug"), KeyboardInterrupt()])
def test_bugs_are_seen(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(error)


def test_a_picture_that_a_format_cannot_hold_is_said_to_be_so() -> None:
    wide = Image.new("RGB", (16384, 1))
    with pytest.raises(
        ConfigError, match=r"16384 x 1 px \(RGB\) cannot be written as WEBP: .*decode this file to .png"
    ):
        picture_bytes(wide, Path("x.webp"))
    assert picture_bytes(wide, Path("x.png"))
