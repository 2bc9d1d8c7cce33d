"""The engine of training: many processes, chains of stages, what is written down, and what goes wrong."""

import csv
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import codling
from codling.cli.main import app
from codling.configuration import to_dict
from codling.errors import ConfigError
from codling.training import checkpoint, log
from codling.training.chain import stage_of, train_stages
from codling.training.cod_run import CoDRun
from codling.training.engine import Engine, resolved_precision
from codling.training.export import export_run
from codling.training.log import LOG, VALIDATION, append, forget, read
from codling.training.loop import CHECKPOINT, SAMPLES, out_of_memory_explained, train
from codling.training.recipes import CHAINS, RECIPES, TrainingConfig, override_stages, stages_of
from tests.conftest import noise_picture
from tests.distributed import shared_batches, shared_weights
from tests.training import CPU, png, tiny_run


def silent(_: str) -> None:
    pass


def losses(directory: Path) -> list[list[float]]:
    names = ("flow", "reconstruction", "commitment", "codebook")
    return [[float(row[name]) for name in names] for row in read(directory / LOG)]


def test_two_processes_have_the_losses_of_one(pictures: Path, tmp_path: Path) -> None:
    """Same global batch, data, draws, gradients, codebook; only the order of sums differs.

    Sharing weights too, they go on from the checkpoint of a single process. When one of them cannot read its data, or
    not all that the other reads, both stop.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    alone = {
        "batches": train(shared_batches(pictures), one / "batches", device=CPU, report=silent),
        "weights": train(shared_weights(pictures), one / "weights", device=CPU, report=silent),
    }
    train(shared_weights(pictures), two / "weights", device=CPU, report=silent, max_minutes=0)
    arguments = [sys.executable, "-m", "tests.distributed", str(pictures), str(two)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parent.parent
    limit = 300  # a process that waits for one that stopped waits forever
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=root, timeout=limit)
    if "Connection reset by peer" in done.stderr:
        # Seen once in nine runs: gloo lost a process. The run then goes on from its checkpoint, as a user's would.
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=root, timeout=limit)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout
    # Both hold twelve pictures or six; of streams they have six each, but one has those of another shard.
    for counts in ("process 0 read 12, process 1 read 6", "process 0 read 6, process 1 read 6"):
        assert (
            done.stdout.count(f"stopped: training data: the processes have not read the same pictures ({counts})") == 2
        )
    assert done.stdout.count("this one could not read") == done.stdout.count("train-0.tar (PermissionError)") == 2
    assert "stopped: training data: no picture" in done.stdout
    assert "stopped: training: another process cannot go on" in done.stdout
    for name, run in alone.items():
        expected, found = torch.tensor(losses(one / name)), torch.tensor(losses(two / name))
        assert len(expected) == run.step
        assert torch.allclose(expected, found, rtol=1e-3), name
        # They learn, so that equal losses say something about gradients.
        assert (expected[-1] - expected[0]).abs().max() > 0.01
        saved = torch.load(two / name / CHECKPOINT, weights_only=True)
        for key, value in run.model.state_dict().items():
            assert torch.allclose(value, saved["model"][key], atol=2e-4), key
        for key, value in run.average.values.items():
            assert torch.allclose(value, saved["average"][key], atol=2e-4), key


def test_a_batch_that_cannot_be_shared() -> None:
    engine = Engine(CPU, precision="float32", devices=2)
    assert engine.places(4) == range(2)
    with pytest.raises(ConfigError, match="3 cannot be shared by 2 devices"):
        engine.places(3)


def two_stages(pictures: Path) -> dict[str, TrainingConfig]:
    return {
        "first": tiny_run(pictures, steps=3, denoise_from=3),
        "second": tiny_run(pictures, steps=3, crop=32, one_step_share=0.5, freeze_encoder_from=0),
    }


def test_stages_follow_each_other_and_resume_in_the_middle_of_any(pictures: Path, tmp_path: Path) -> None:
    stages = two_stages(pictures)
    whole = train_stages(stages, tmp_path / "whole", device=CPU, report=silent)
    lines: list[str] = []
    seen = []
    for _ in range(6):  # each call makes at least one step
        train_stages(stages, tmp_path / "parts", device=CPU, max_minutes=0, report=lines.append)
        state = torch.load(tmp_path / "parts" / CHECKPOINT, weights_only=True)
        seen.append((state["stage"], state["step"]))
    assert seen[:2] == [("first", 1), ("first", 2)]
    assert seen[-1] == ("second", 3)
    assert any("starts from the weights of stage first" in line for line in lines)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state["model"][name]), name
    # A finished chain stays as it is.
    again = train_stages(stages, tmp_path / "parts", device=CPU, report=silent)
    assert (again.step, stage_of(tmp_path / "parts")) == (3, "second")


def test_a_stage_starts_from_averaged_weights_and_learns_anew(pictures: Path, tmp_path: Path) -> None:
    first = train(two_stages(pictures)["first"], tmp_path, device=CPU, report=silent, stage="first")
    second = CoDRun(two_stages(pictures)["second"], CPU)
    second.inherit(tmp_path / CHECKPOINT)
    assert second.step == 0
    assert not second.optimiser.state
    for name, value in first.averaged_model().state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert any(not torch.equal(v, second.model.state_dict()[k]) for k, v in first.model.state_dict().items())
    assert torch.equal(second.codebook.count, first.codebook.count)


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_stages_of_a_chain_train_one_model(name: str) -> None:
    stages = stages_of(name)
    assert len({str(to_dict(stage)["model"]) for stage in stages.values()}) == 1
    assert len({to_dict(stage).get("reconstruction_layers") for stage in stages.values()}) == 1


def test_small_recipes_have_the_sizes_they_are_named_for() -> None:
    def millions(name: str) -> float:
        with torch.device("meta"):
            from codling.models.cod import CoD

            return sum(p.numel() for p in CoD(RECIPES[name].model).parameters()) / 1e6  # type: ignore[attr-defined]

    assert 15 < millions("cod-s-256") < 25
    assert millions("cod-xs-flow") < 10


def test_settings_go_to_all_stages_or_to_one() -> None:
    with pytest.raises(ConfigError, match="set quantise_from below steps"):
        override_stages(stages_of("cod-xs"), ["steps=100"])
    stages = override_stages(stages_of("cod-xs"), ["data=http://host:80/a.tar", "cod-xs-flow:steps=5"])
    assert [stage.data for stage in stages.values()] == ["http://host:80/a.tar"] * 3
    assert [stage.steps for stage in stages.values()] == [5200, 5, 1000]
    with pytest.raises(ConfigError, match="did you mean cod-xs-flow"):
        override_stages(stages_of("cod-xs"), ["cod-xs-flw:steps=5"])
    with pytest.raises(ConfigError, match="did you mean cod-xs"):
        stages_of("cod-x")


@pytest.mark.parametrize("name", ["crop", "steps", "warmup", "checkpoint_every", "validate_every"])
def test_counts_that_cannot_be_zero(pictures: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        tiny_run(pictures, **{name: 0})


def test_a_newcomer_trains_by_one_command_on_a_folder_of_photographs(tmp_path: Path) -> None:
    """The shipped recipe, smaller and shorter; from nothing to a file that is decoded."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        (photos / f"{number}.png").write_bytes(png(noise_picture(80, 100, seed=number)))
    small = to_dict(tiny_run(photos))["model"]
    small["finisher"] = {"widths": [4, 8], "blocks": [1, 1], "embedding": 8}
    arguments = [f"--set=model={json.dumps(small)}", f"--set=data={photos}", f"--set=validation={photos}"]
    arguments += [
        "--set=crop=64",
        "--set=batch=2",
        "--set=steps=4",
        "--set=cod-xs-codec:quantise_from=1",
        "--set=finisher_prior=",
    ]
    arguments += ["--set=validation_steps=[1]", "--set=checkpoint_every=4", "--max-minutes=5"]
    done = CliRunner().invoke(app, ["train", "cod-xs", *arguments, "-o", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "stage 3 of 3, cod-xs-finish: step 4 of 4" in done.stdout
    codec = codling.load(tmp_path / "run" / "model")
    data = codling.encode(noise_picture(50, 70), model=codec)
    assert codling.decode(data, model=codec, steps=1).size == codling.decode(data, model=codec).size == (70, 50)


def test_what_a_run_writes_down(pictures: Path, tmp_path: Path) -> None:
    config = tiny_run(pictures, validation=str(pictures), steps=4, log_every=2)
    train(config, tmp_path, device=CPU, report=silent, stage="tiny")
    rows = read(tmp_path / LOG)
    assert [(row["step"], row["stage"]) for row in rows] == [("2", "tiny"), ("4", "tiny")]
    for name in ("pictures/s", "TFLOP/s", "memory GB"):
        assert float(rows[0][name]) > 0
    assert float(rows[0]["minutes left"]) > float(rows[1]["minutes left"]) == 0
    (scores,) = read(tmp_path / VALIDATION)
    for name in ("PSNR at 1 steps", "SWD at 2 steps", "gain at 0.6", "null gain at 0.6", "reconstruction PSNR"):
        assert scores[name]
    (sheet,) = (tmp_path / SAMPLES).glob("*.png")
    assert Image.open(sheet).size == (4 * 64, 3 * 64)  # a row a picture: itself, off its condition, one step, two steps
    assert list((tmp_path / "tensorboard" / "tiny").glob("events*"))


def test_logs_grow_columns_and_forget_what_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / LOG
    for step in (1, 2, 3):
        append(path, {"step": str(step), "stage": "a", "flow": "1"})
    with monkeypatch.context() as patch:
        patch.setattr(log, "read", None)  # a long log is not read again for each of its rows
        append(path, {"step": "4", "stage": "a", "flow": "1"})
    append(path, {"step": "1", "stage": "b", "extra": "2"})
    forget(path, stage="a", after=2)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["step", "stage", "flow", "extra"], ["1", "a", "1", ""], ["2", "a", "1", ""], ["1", "b", "", "2"],
        ]  # fmt: skip


def test_a_row_that_a_crash_cut_off_does_not_stop_a_run(tmp_path: Path) -> None:
    path = tmp_path / LOG
    for step in (1, 2):
        append(path, {"step": str(step), "stage": "a", "flow": "1"})
    path.write_text(path.read_text() + "3,a,0.12")
    append(path, {"step": "4", "stage": "a", "flow": "1"})
    append(path, {"step": "5", "stage": "a", "flow": "1", "more": "2"})
    forget(path, stage="a", after=4)
    assert [row["step"] for row in read(path)] == ["1", "2", "3"]


def test_means_are_of_the_steps_that_had_the_term() -> None:
    meter = log.Meter(4)
    for terms in ({"flow": 1.0}, {"flow": 2.0}, {"flow": 6.0, "late": 5.0}):
        meter.add(terms, operations=10)
    row = meter.read(steps_left=0, device=CPU)
    assert (row["flow"], row["late"]) == (3.0, 5.0)
    meter.add({"flow": 7.0}, operations=10)
    assert "late" not in meter.read(steps_left=0, device=CPU)


def test_a_checkpoint_is_on_disk_before_its_name_is_and_its_name_before_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    sync, rename = os.fsync, os.replace

    def noting_sync(handle: int) -> None:
        happened.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def noting_rename(source: Path, target: Path) -> None:
        happened.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(os, "replace", noting_rename)
    state = {"config": {}, "step": 3, "model": {"a": torch.arange(3)}}
    checkpoint.write(tmp_path / CHECKPOINT, state)
    assert happened == ["file", "rename", "directory"]
    assert torch.equal(checkpoint.read(tmp_path / CHECKPOINT, device=CPU)["model"]["a"], torch.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_validation_repeats_itself(pictures: Path) -> None:
    run = CoDRun(tiny_run(pictures), CPU)
    held_out = [noise_picture(70, 90, seed=seed) for seed in range(3)]
    assert run.validate(held_out) == run.validate(held_out)
    # A picture smaller than the crop is continued to its size.
    assert run.samples([noise_picture(60, 90)])[0].shape == (1, 3, 64, 64)


def test_a_terminated_run_is_saved(pictures: Path, tmp_path: Path) -> None:
    class Terminated(CoDRun):
        def after_step(self) -> None:
            super().after_step()
            if self.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    from codling.training import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loop.RUNS, TrainingConfig, Terminated)
        assert train(tiny_run(pictures), tmp_path, device=CPU, report=silent).step == 3
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 3


def test_memory_that_runs_out_says_what_to_change(pictures: Path, tmp_path: Path) -> None:
    class Hungry(CoDRun):
        def loss(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return torch.empty(1 << 60).sum(), {}

    from codling.training import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loop.RUNS, TrainingConfig, Hungry)
        with pytest.raises(ConfigError, match=r"4 squares of 64 px .*Lower batch"):
            train(tiny_run(pictures), tmp_path, device=CPU, report=silent)
    with pytest.raises(ConfigError, match="Lower batch"), out_of_memory_explained(tiny_run(pictures)):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_explained(tiny_run(pictures)):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize("damage", ["text", "cut", "foreign"])
def test_files_that_are_no_checkpoints(pictures: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / CHECKPOINT
    if damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "cut":
        CoDRun(tiny_run(pictures), CPU).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    else:
        torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match="is not a checkpoint"):
        train_stages({"tiny": tiny_run(pictures)}, tmp_path, device=CPU, report=silent)


def test_a_compiled_run_has_the_same_losses(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced for real, but run by the plain backend: code generation is torch's own business."""
    compiled = []
    genuine = torch.compile

    def plainly(function, **_):  # type: ignore[no-untyped-def]
        compiled.append(function)
        return genuine(function, backend="eager")

    monkeypatch.setattr(torch, "compile", plainly)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: setattr(m, "_compiled_call_impl", plainly(m._call_impl)))
    plain = train(tiny_run(pictures, steps=2, log_every=1), tmp_path / "plain", device=CPU, report=silent)
    config = tiny_run(pictures, steps=2, log_every=1, compile=True)
    fast = train(config, tmp_path / "fast", device=CPU, report=silent)
    assert len(compiled) == 1
    assert torch.allclose(torch.tensor(losses(tmp_path / "plain")), torch.tensor(losses(tmp_path / "fast")), rtol=1e-4)
    assert list(fast.model.state_dict()) == list(plain.model.state_dict())
    export_run(fast, tmp_path / "model", pictures=5)
    # Elsewhere than on a CPU the condition codec's encoder and decoder are compiled too.
    codec, image = fast.model.condition_codec, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = codec.encoder(image), codec.decode(codec.encode(image))
        fast.device = torch.device("cuda")
        fast.compile()
        assert len(compiled) == 4
        found = codec.encoder(image), codec.decode(codec.encode(image))
    for compiled_part, part in zip(found, expected, strict=True):
        assert torch.allclose(compiled_part, part, atol=1e-5)


def test_training_without_its_packages_says_what_to_install(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.fabric", None)
    with pytest.raises(ConfigError, match=r"pip install 'codling\[train\]'"):
        CoDRun(tiny_run(pictures), CPU)


def test_bfloat16_is_taken_where_it_is_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved_precision("auto", torch.device("cuda")) == "bfloat16"
    for supported, wanted in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=supported: supported)
        assert resolved_precision("auto", CPU) == wanted
    # As in builds for other processors than this one.
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.delattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    assert resolved_precision("auto", CPU) == "float32"
    # Asked for, it is what is asked for.
    assert resolved_precision("bfloat16", CPU) == "bfloat16"
    assert Engine(CPU, precision="auto").precision == "float32"
