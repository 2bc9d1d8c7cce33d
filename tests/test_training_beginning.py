"""A run that begins from a model: the weights it starts with, what begins anew, and models that do not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from codling.cli.main import app
from codling.configuration import differences, to_dict
from codling.errors import ConfigError, ModelError
from codling.models.denoiser import Denoiser
from codling.training.averages import CodebookAverage
from codling.training.beginning import begin
from codling.training.chain import train_stages
from codling.training.cod_run import CoDRun
from codling.training.loop import CHECKPOINT, RUNS, train
from codling.training.oscar_run import OscarRun
from codling.training.recipes import RECIPES, DenoiserTraining, RunConfig
from codling.weights.catalogue import entries
from codling.weights.store import Manifest, Parts, load_parts, save_model
from tests import tiny_oscar
from tests.conftest import tiny_config, tiny_model
from tests.training import CPU, tiny_run

DENOISER = tiny_oscar.CONFIG.denoiser
KINDS = ("cod", "denoiser", "oscar")


def silent(_: str) -> None:
    pass


def config_of(kind: str, pictures: Path, **changes: object) -> RunConfig:
    """A run that changes no weight: its learning rate is 0, and codebooks stay as they are."""
    changes = {"learning_rate": 0.0, "steps": 2, "checkpoint_every": 1, "log_every": 1, **changes}
    if kind == "cod":
        return tiny_run(pictures, freeze_encoder_from=0, **changes)
    if kind == "oscar":
        return tiny_oscar.tiny_run(pictures, **changes)
    settings = {"model": DENOISER, "data": str(pictures), "crop": 32, "batch": 2, "precision": "float32", **changes}
    return DenoiserTraining(**settings)  # type: ignore[arg-type]


def denoiser(seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    model = Denoiser(DENOISER)
    model.filter.log_power.normal_()
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of every kind."""
    directory = tmp_path_factory.mktemp("models")
    for kind, model in zip(KINDS, (tiny_model(), denoiser(), tiny_oscar.tiny_oscar()), strict=True):
        save_model(directory / kind, Parts(model))
    return directory


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_parts(directory, device=CPU).model.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_begins_with_the_weights_of_the_model(kind: str, models: Path, pictures: Path, tmp_path: Path) -> None:
    """Average included, and with them the spectrum of the filter and the noise of the levels, which are not fitted."""
    config = config_of(kind, pictures)
    run = RUNS[type(config)](config, CPU)  # type: ignore[call-arg]
    begin(run, str(models / kind))
    assert run.step == 0
    trained, lines = train(config, tmp_path, device=CPU, report=silent, begin_from=str(models / kind)), list[str]()
    assert trained.step == 2
    for name, value in weights_of(models / kind).items():
        for each in (run, trained):
            assert torch.equal(each.model.state_dict()[name], value), name
            assert torch.allclose(each.average.values.get(name, value), value), name
    train(replace(config, steps=3), tmp_path, device=CPU, report=lines.append)
    assert any(f"at step 2, begun from model {kind} (id " in line for line in lines)


def test_the_first_step_is_that_of_the_model(models: Path, pictures: Path) -> None:
    """Its velocity, not only its names: the loss of the first batch is the one that the model has."""
    run, known = (CoDRun(tiny_run(pictures), CPU) for _ in range(2))
    begin(run, str(models / "cod"))
    known.model.load_state_dict(tiny_model().state_dict())
    image = torch.rand(4, 3, 64, 64) * 2 - 1
    assert run.train_step(image)["flow"] == known.train_step(image)["flow"]


def test_a_trained_codebook_outlives_the_first_steps(models: Path, pictures: Path) -> None:
    """Pictures of one colour use few codewords: the others stay, where a new codebook's would be put on that colour."""

    def unused_and_kept(run: CoDRun) -> tuple[int, int]:
        before, used = run.embedding.detach().clone(), torch.zeros(12, dtype=torch.bool)
        for _ in range(5):
            run.train_step(torch.full((4, 3, 64, 64), 0.3))
            assert run._result is not None
            used[run._result.indices[run._result.counted].unique()] = True
        same = torch.isclose(run.embedding, before, rtol=1e-4).all(1)
        return int((~used).sum()), int((same & ~used).sum())

    run, uncounted = (CoDRun(tiny_run(pictures, learning_rate=0.0), CPU) for _ in range(2))
    for each in (run, uncounted):
        begin(each, str(models / "cod"))
    uncounted.codebook = CodebookAverage(uncounted.embedding)
    unused, kept = unused_and_kept(run)
    assert unused == kept > 0
    assert unused_and_kept(uncounted)[1] == 0


def test_the_prior_counts_are_those_of_one_batch() -> None:
    """Alike for all codewords; a batch that uses them alike weighs what it does in the midst of a run."""
    embedding = torch.arange(8.0).view(4, 2)
    average = CodebookAverage(embedding)
    average.begin(embedding, 40)
    features, indices = embedding.repeat(10, 1) + 1, torch.arange(4).repeat(10)
    before = embedding.clone()
    average.update(embedding, features, indices, seed=0)
    assert torch.allclose(embedding - before, torch.tensor(1 - CodebookAverage.DECAY), atol=1e-5)
    assert torch.allclose(average.count, torch.tensor(10.0))


def test_tokens_and_errors_of_oscar_go_on_in_stage_one(models: Path, pictures: Path) -> None:
    run = OscarRun(tiny_oscar.tiny_run(pictures, restore_from=6, learning_rate=0.0), CPU)
    begin(run, str(models / "oscar"))
    noise = run.model.noise.clone()
    assert torch.allclose(run.model.denoiser.filter.noise_of(run.errors), noise, atol=1e-4)
    for codebook, embedding, stack in zip(run.codebooks, run._embeddings(), (0, 1, 1), strict=True):
        stride, size = tiny_oscar.HYPER.stacks[stack].stride, tiny_oscar.HYPER.stacks[stack].codebook_size
        assert torch.allclose(codebook.count, torch.tensor(4 * (48 / stride) ** 2 / size))
        assert torch.allclose(codebook.sum / codebook.count[:, None], embedding)


def test_models_of_another_kind_or_shape_are_refused(models: Path, pictures: Path, tmp_path: Path) -> None:
    def refused(config: RunConfig, model: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            train(config, tmp_path / "run", device=CPU, report=silent, begin_from=str(models / model))
        assert not (tmp_path / "run" / CHECKPOINT).exists()

    refused(
        config_of("cod", pictures), "denoiser", r"denoiser \(id .*is of kind 'denoiser' and the recipe trains 'cod'"
    )
    refused(config_of("denoiser", pictures), "oscar", "is of kind 'oscar' and the recipe trains 'denoiser'")
    condition = replace(tiny_config().condition, codebook_size=16)
    other = tiny_config(condition=condition, sigma_data=None)
    wanted = "model.condition.codebook_size is 12, wanted 16, model.sigma_data is 0.5, wanted null; name another model"
    refused(config_of("cod", pictures, model=other), "cod", wanted)
    wider = replace(DENOISER, widths=(8, 16))
    refused(config_of("denoiser", pictures, model=wider), "denoiser", r"model.widths is \[8, 12\], wanted \[8, 16\]")
    for unknown in ("nothing", ""):
        with pytest.raises(ModelError, match=f"unknown model '{unknown}'"):
            train(config_of("cod", pictures), tmp_path / "run", device=CPU, report=silent, begin_from=unknown)
    # How a model is decoded is no matter of its weights.
    begin(CoDRun(tiny_run(pictures, model=tiny_config(steps=7, guidance=1.0)), CPU), str(models / "cod"))


def test_differences_name_settings() -> None:
    one, other = {"a": {"b": 1, "c": [1, 2]}, "d": None}, {"a": {"b": 2, "c": [1, 2]}, "e": "x"}
    assert differences(one, one, where="m") == []
    assert differences(one, other, where="m") == ["m.a.b is 1, wanted 2", 'm.e is null, wanted "x"']


def test_only_the_first_stage_begins_from_it_and_only_without_a_checkpoint(
    models: Path, pictures: Path, tmp_path: Path
) -> None:
    stages = {name: config_of("cod", pictures, learning_rate=1e-3) for name in ("first", "second")}
    lines: list[str] = []

    def go_on(model: str) -> None:
        train_stages(stages, tmp_path, device=CPU, max_minutes=0, report=lines.append, begin_from=model)

    go_on(str(models / "cod"))
    # From here on it is not even looked for; nor would the weights of step 1 come again.
    for _ in range(3):
        go_on("nothing")
    (line,) = (line for line in lines if "beginning from" in line)
    assert line.startswith("beginning from the weights of model cod (id ")
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert (state["stage"], state["step"]) == ("second", 2)
    assert state["origin"].startswith("cod (id ")
    whole = train_stages(stages, tmp_path / "whole", device=CPU, report=silent, begin_from=str(models / "cod"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state["model"][name]), name


def test_from_on_the_command_line(models: Path, pictures: Path, tmp_path: Path) -> None:
    small = json.dumps(to_dict(DENOISER))
    command = ["train", "diffc-xs", "--from", str(models / "denoiser"), "-o", str(tmp_path), "--export", "float32"]
    command += [f"--set=data={pictures}", f"--set=model={small}", "--set=crop=32", "--set=batch=2", "--set=steps=1"]
    done = CliRunner().invoke(app, [*command, "--set=learning_rate=0.0"])
    assert done.exit_code == 0, done.output
    assert "beginning from the weights of model denoiser (id " in done.stdout
    before, after = weights_of(models / "denoiser"), weights_of(tmp_path / "model")
    assert all(torch.allclose(after[name], value) for name, value in before.items())


def test_embedded_models_have_the_shape_of_their_recipes() -> None:
    known = {entry.name: Manifest.read(entry.values, entry.name) for entry in entries() if entry.values}
    for recipe, model in (("cod-xs-finish", "cod-xs"), ("diffc-xs", "diffc-xs"), ("oscar-s-restore", "oscar-s")):
        wanted = RECIPES[recipe].model  # type: ignore[attr-defined]
        assert type(wanted) is type(known[model].config)
        for name in RUNS[type(RECIPES[recipe])].shape:
            assert getattr(wanted, name) == getattr(known[model].config, name), (recipe, name)
