"""Training of our own OSCAR: what each stage trains, exact resume, shared batches, the adversary, and its export."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import codling
from codling.errors import ConfigError, ModelError, RateError
from codling.models.hyper_codec import HyperCodecConfig, Stack
from codling.models.oscar import OscarConfig
from codling.training.beginning import begin
from codling.training.draws import spread
from codling.training.engine import Engine
from codling.training.export import export_run
from codling.training.log import LOG, read
from codling.training.loop import CHECKPOINT, train
from codling.training.oscar_run import OscarRun
from codling.training.oscar_terms import Restored
from codling.training.recipes import oscar_weights
from codling.weights.store import Parts, save_model
from tests.conftest import noise_picture
from tests.tiny_oscar import CONFIG, CPU, image, tiny_oscar, tiny_run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    directory = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        Image.fromarray(noise_picture(96, 110, seed=number)).save(directory / f"{number}.png")
    return directory


def test_each_stage_trains_its_own_part(pictures: Path, tmp_path: Path) -> None:
    run = train(tiny_run(pictures, steps=6, restore_from=3), tmp_path, device=CPU, report=lambda _: None)
    assert isinstance(run, OscarRun)
    first = OscarRun(tiny_run(pictures, steps=60, restore_from=3), CPU)
    first.restore(tmp_path / CHECKPOINT)
    batch = torch.cat([image(48, 48, seed=seed) for seed in range(4)])

    def changed(run: OscarRun) -> set[str]:
        before = {name: value.clone() for name, value in run.model.state_dict().items()}
        run.train_step(batch)
        return {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}

    second_stage = changed(first)
    assert any(name.startswith("denoiser.") for name in second_stage)
    assert any(name.startswith("hyper.out") for name in second_stage)
    frozen = ("hyper.first", "hyper.into", "hyper.heads", "hyper.shortcut", "hyper.quantisers", "noise")
    assert not [name for name in second_stage if name.startswith(frozen)]
    beginning = OscarRun(tiny_run(pictures, restore_from=3), CPU)
    beginning.prepare(lambda: [noise_picture(96, 112, seed=1)])
    first_stage = changed(beginning)
    assert not [name for name in first_stage if name.startswith("denoiser.")]
    assert {"noise", "hyper.quantisers.0.0.embedding", "hyper.heads.0.weight"} <= first_stage


def test_with_the_denoiser_frozen_only_what_reads_tokens_learns(pictures: Path, tmp_path: Path) -> None:
    config = tiny_run(pictures, steps=3, restore_from=2, freeze_denoiser=True)
    train(config, tmp_path, device=CPU, report=lambda _: None)
    run = OscarRun(replace(config, steps=60), CPU)
    run.restore(tmp_path / CHECKPOINT)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train_step(torch.cat([image(48, 48, seed=seed) for seed in range(4)]))
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    read = ("hyper.out", "hyper.widen", "hyper.last", "hyper.back", "hyper.embedding")
    assert changed and all(name.startswith(read) for name in changed)
    with pytest.raises(ConfigError, match="set what says which"):
        train(replace(config, steps=6, freeze_denoiser=False), tmp_path, device=CPU, report=lambda _: None)


@pytest.mark.parametrize("lost", [2, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(pictures: Path, tmp_path: Path, lost: int) -> None:
    """The step that was lost is of the first stage, of the second, or of the adversary."""
    config = tiny_run(
        pictures,
        steps=6,
        restore_from=2,
        weights={**oscar_weights(), "adversarial": 0.1},
        adversarial_from=3,
        jump_share=0.5,
    )
    whole = train(config, tmp_path / "whole", device=CPU, report=lambda _: None)
    stopped = False

    def stop(line: str) -> None:
        nonlocal stopped
        if line.startswith(f"step {lost}") and not stopped:
            stopped = True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(config, checkpoint_every=1, log_every=1), tmp_path / "parts", device=CPU, report=stop)
    resumed = train(config, tmp_path / "parts", device=CPU, report=lambda _: None)
    assert stopped and resumed.step == whole.step == 6
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for name, value in whole.average.values.items():
        assert torch.equal(value, resumed.average.values[name]), name
    assert torch.equal(whole.errors, resumed.errors)
    for a, b in zip(whole.discriminator.parameters(), resumed.discriminator.parameters(), strict=True):
        assert torch.equal(a, b)


def test_settings_of_optimisers_are_those_asked_for_now(pictures: Path, tmp_path: Path) -> None:
    weights = {**oscar_weights(), "adversarial": 0.1, "distribution": 0.1}
    config = tiny_run(pictures, steps=4, restore_from=2, weights=weights, adversarial_from=2)
    train(config, tmp_path, device=CPU, report=lambda _: None)
    changes = {"weight_decay": 0.5, "discriminator_learning_rate": 1e-5, "fake_learning_rate": 3e-6}
    resumed, next_stage = (OscarRun(replace(config, steps=9, **changes), CPU) for _ in range(2))  # type: ignore[arg-type]
    resumed.restore(tmp_path / CHECKPOINT)
    next_stage.inherit(tmp_path / CHECKPOINT)
    for run in (resumed, next_stage):
        assert run.matching is not None
        assert run.optimiser.param_groups[0]["weight_decay"] == 0.5
        assert run.discriminator_optimiser.param_groups[0]["lr"] == 1e-5
        assert run.matching.optimiser.param_groups[0]["lr"] == 3e-6
        steps = [optimiser.state for optimiser in (run.optimiser, run.discriminator_optimiser, run.matching.optimiser)]
        assert all(map(bool, steps)) == any(map(bool, steps)) == (run is resumed)


def test_halves_of_a_batch_have_the_gradient_of_the_whole(pictures: Path) -> None:
    """Two processes train what one does: of all terms and gradients the mean over halves is that of the batch.

    The halves differ in error, as the first is of smooth pictures, so a mean of logarithms would not do.
    """
    smooth, rough = (torch.cat([image(48, 48, seed=seed) for seed in seeds]) for seeds in ((0, 1), (2, 3)))
    halves = smooth, (rough * 3).clamp(-1, 1)

    def of(batch: torch.Tensor, errors: list[torch.Tensor] | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Terms and gradients, and in `errors` what the process told the others, or what all told it."""
        run = OscarRun(tiny_run(pictures, restore_from=6), CPU)
        run.model.load_state_dict(tiny_oscar().state_dict())
        told: list[torch.Tensor] = []

        def gather(rows: torch.Tensor) -> torch.Tensor:
            told.append(rows)
            return rows if errors is None else torch.cat(errors)

        run.engine.gather = gather  # type: ignore[method-assign]
        loss, terms = run.loss(batch)
        loss.backward()
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        return torch.stack([terms["alignment"], terms["commitment"]]).detach(), [*gradients, *told]

    errors = [of(half)[1][-1] for half in halves]
    assert not torch.allclose(*errors, rtol=0.5)
    whole, parts = of(torch.cat(halves)), [of(half, errors) for half in halves]
    assert torch.allclose((parts[0][0] + parts[1][0]) / 2, whole[0], rtol=1e-4)
    for a, b, both in zip(parts[0][1], parts[1][1], whole[1], strict=True):
        assert torch.allclose((a + b) / 2, both, rtol=1e-3, atol=1e-5)


def test_every_share_of_the_smallest_batch_has_its_turn() -> None:
    """On average over steps, and evenly over processes' halves of a larger one."""
    numbers = np.array([spread(2, seed=3, step=step) for step in range(400)])
    assert np.abs((numbers < 0.3).mean() - 0.3) < 0.04
    assert np.allclose(np.abs(numbers[:, 0] - numbers[:, 1]), 0.5)
    low = np.array(spread(16, seed=0, step=5)) < 0.5
    assert low.sum() == 8 and abs(int(low[:8].sum()) - 4) <= 1


def test_validation_scores_what_is_told_and_what_is_finished(pictures: Path) -> None:
    run = OscarRun(tiny_run(pictures, jump_share=0.3, finish_share=0.3, crop=48), CPU)
    run.step = run.config.restore_from or 0
    scores = run.validate([noise_picture(64, 64, seed=seed) for seed in range(2)])
    assert list(run.others) == ["linear", "diffc-xs", "cod-xs"]
    for name in run.others:
        assert np.isfinite(scores[f"PSNR told as by {name}"]) and scores[f"SWD told as by {name}"] > 0


@pytest.mark.parametrize("shares", [(0.5, 0.0), (0.25, 0.25), (0.0, 0.5)])
def test_shares_of_a_batch_with_and_without_tokens_have_the_terms_of_the_whole(
    pictures: Path, shares: tuple[float, float]
) -> None:
    """One share is jumps or ends of another model's streams alone, the other has none."""
    batch = torch.cat([image(48, 48, seed=seed) for seed in range(4)])

    def terms(places: Sequence[int]) -> dict[str, float]:
        weights = oscar_weights() | {"sliced": 1.0}
        run = OscarRun(tiny_run(pictures, jump_share=shares[0], finish_share=shares[1], weights=weights), CPU)
        run.model.load_state_dict(tiny_oscar().state_dict())
        run.places = places  # type: ignore[assignment]
        loss, terms = run.loss(batch[list(places)])
        loss.backward()
        return {name: float(term.detach()) for name, term in terms.items()}

    numbers = spread(4, seed=0, step=0)
    split = [[place for place in range(4) if (numbers[place] < 0.5) == told] for told in (True, False)]
    assert [len(places) for places in split] == [2, 2]
    whole, *halves = (terms(places) for places in (range(4), *split))
    for name in ("squared", "pixel", "cosine", "sliced"):
        assert np.mean([half[name] for half in halves]) == pytest.approx(whole[name], rel=1e-4), name


@pytest.mark.parametrize("reaches", [True, False])
def test_the_adversary_has_a_gradient_unless_asked_as_published(pictures: Path, reaches: bool) -> None:
    weights = dict.fromkeys(oscar_weights(), 0.0) | {"adversarial": 1.0}
    run = OscarRun(tiny_run(pictures, weights=weights, adversarial_gradient=reaches), CPU)
    run.model.load_state_dict(tiny_oscar().state_dict())
    loss, terms = run.loss(torch.cat([image(48, 48, seed=seed) for seed in range(4)]))
    loss.backward()
    gradients = [p.grad for p in run.model.denoiser.parameters() if p.grad is not None]
    assert "adversarial" in terms
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients) == reaches


def test_the_generators_step_leaves_the_discriminator_no_gradient(pictures: Path) -> None:
    """And gives the generator the gradient that it would have with one."""
    weights = dict.fromkeys(oscar_weights(), 0.0) | {"adversarial": 1.0}
    batch = torch.cat([image(48, 48, seed=seed) for seed in range(4)])

    def generator_gradients(run: OscarRun) -> list[torch.Tensor]:
        run.model.load_state_dict(tiny_oscar().state_dict())
        run.loss(batch)[0].backward()
        return [p.grad for p in run.model.denoiser.parameters() if p.grad is not None]

    run, plain = (OscarRun(tiny_run(pictures, weights=weights), CPU) for _ in range(2))
    plain._frozen_judgement = lambda restored: plain.discriminator(*restored.parts)  # type: ignore[method-assign]
    ours, usual = generator_gradients(run), generator_gradients(plain)
    assert all(torch.equal(a, b) for a, b in zip(ours, usual, strict=True))
    assert all(p.grad is None for p in run.discriminator.parameters())
    assert any(p.grad is not None for p in plain.discriminator.parameters())
    # Its spectral norms go on being estimated.
    for a, b in zip(run.discriminator.buffers(), plain.discriminator.buffers(), strict=True):
        assert torch.equal(a, b)


def test_the_discriminator_learns_to_tell(pictures: Path) -> None:
    run = OscarRun(tiny_run(pictures, weights={**oscar_weights(), "adversarial": 0.1}), CPU)
    real = torch.cat([image(48, 48, seed=seed) for seed in range(4)])
    coarse, scale = F.avg_pool2d(real, 5, stride=1, padding=2), torch.full((4, 1, 1, 1), 0.3)
    run._restored = Restored(coarse, coarse, scale)
    for _ in range(60):
        run._judge(real)
    with torch.no_grad():
        assert float(run.discriminator(real, coarse, scale).mean()) > float(
            run.discriminator(coarse, coarse, scale).mean()
        )


def test_networks_are_shared_once_and_only_among_the_processes_of_a_run(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped: list[str] = []
    monkeypatch.setattr(Engine, "wrap", lambda _, module: wrapped.append(type(module).__name__) or module)
    run = OscarRun(tiny_run(pictures), CPU)
    assert wrapped == []
    run.distribute(Engine(CPU, precision="float32"))
    assert sorted(wrapped) == ["Discriminator", "LossModule"]


def test_bad_settings_are_named(pictures: Path, tiny_directory: Path) -> None:
    with pytest.raises(ConfigError, match="stride among"):
        HyperCodecConfig(stacks=(Stack(12, 8),))
    with pytest.raises(ConfigError, match="one number a stride"):
        HyperCodecConfig(widths=(8, 8))
    with pytest.raises(ConfigError, match="grain"):
        OscarConfig(grain=2.0)
    with pytest.raises(ConfigError, match="level_shares"):
        tiny_run(pictures, level_shares=(1.0,))
    with pytest.raises(ConfigError, match="not all 0"):
        tiny_run(pictures, level_shares=(0.0, 0.0, 0.0))
    for shares in ((2.0, 0.0), (-0.1, 0.5), (0.6, 0.6)):
        with pytest.raises(ConfigError, match=f"no more than 1 together, got {shares[0]} and {shares[1]}"):
            tiny_run(pictures, jump_share=shares[0], finish_share=shares[1])
    with pytest.raises(ConfigError, match="nothing of other samples"):
        tiny_run(pictures, jump_share=0.2, freeze_denoiser=True)
    with pytest.raises(ConfigError, match="nothing where samples are distilled"):
        tiny_run(pictures, freeze_denoiser=True, weights={**oscar_weights(), "sampled": 1.0})
    with pytest.raises(ConfigError, match="different models, got linear in both"):
        tiny_run(pictures, jump_share=0.2, finish_share=0.2, finish_as=("diffc-xs", "linear"))
    with pytest.raises(ConfigError, match="needs models in finish_as"):
        tiny_run(pictures, finish_share=0.2, finish_as=())
    with pytest.raises(ConfigError, match="in finish_as, each of them once, got diffc-xs, linear, diffc-xs"):
        tiny_run(pictures, finish_share=0.2, finish_as=("diffc-xs", "linear", "diffc-xs"))
    with pytest.raises(ConfigError, match="sampled_steps must be at least 1, got 0"):
        tiny_run(pictures, sampled_steps=0)
    with pytest.raises(ConfigError, match="noise_share must be above 0"):
        OscarConfig(noise_share=0.0)
    with pytest.raises(ConfigError, match="jump_as wants a model whose steps need no network"):
        OscarRun(tiny_run(pictures, jump_share=0.5, jump_as="diffc-xs", finish_as=("linear",)), CPU)
    with pytest.raises(ConfigError, match="jump_as wants a model whose steps need no network"):
        OscarRun(tiny_run(pictures, jump_as="diffc-xs"), CPU)
    with pytest.raises(ConfigError, match="a denoiser of pixels without a condition, got 'cod-xs'"):
        OscarRun(tiny_run(pictures, jump_share=0.5, jump_as="cod-xs", finish_as=("diffc-xs",)), CPU)
    with pytest.raises(ModelError, match=r"how far pictures of model .* are off was not measured"):
        OscarRun(tiny_run(pictures, finish_share=0.5, finish_as=(str(tiny_directory),)), CPU)
    with pytest.raises(ConfigError, match="weights must be"):
        OscarRun(tiny_run(pictures, weights={"pixel": 1.0}), CPU)
    with pytest.raises(ConfigError, match="no picture of at least 16 px"):
        OscarRun(tiny_run(pictures, restore_from=1), CPU).prepare(lambda: [np.zeros((64, 15, 3), np.uint8)])
    with pytest.raises(ConfigError, match="goes on from trained tokens"):
        OscarRun(tiny_run(pictures), CPU).prepare(lambda: [np.zeros((64, 64, 3), np.uint8)])
    with pytest.raises(ConfigError, match=r"does not fit: .*widths"):
        OscarRun(tiny_run(pictures, prior="diffc-xs", restore_from=1), CPU).prepare(
            lambda: [np.zeros((64, 64, 3), np.uint8)]
        )


def test_a_run_begins_from_models_with_its_share_of_noise_only(pictures: Path, tmp_path: Path) -> None:
    """The noise fractions of a model's levels, which are not measured again, are of that share."""
    save_model(tmp_path, Parts(tiny_oscar()))
    begin(OscarRun(tiny_run(pictures), CPU), str(tmp_path))
    with pytest.raises(ConfigError, match=r"model.noise_share is 1.0, wanted 0.8; name another model"):
        begin(OscarRun(tiny_run(pictures, model=replace(CONFIG, noise_share=0.8)), CPU), str(tmp_path))


def test_an_exported_run_codes_at_every_level_and_within_a_budget(pictures: Path, tmp_path: Path) -> None:
    run = train(tiny_run(pictures, steps=2, restore_from=1), tmp_path, device=CPU, report=lambda _: None)
    export_run(run, tmp_path / "model", precision="int8", pictures=4)
    codec = codling.load(tmp_path / "model")
    picture = noise_picture(50, 70)
    sizes = [len(codling.encode(picture, model=codec, level=level)) for level in range(3)]
    for level in range(3):
        data = codling.encode(picture, model=codec, max_bytes=sizes[level])
        assert len(data) <= sizes[level]
        assert codling.decode(data, model=tmp_path / "model").size == (70, 50)
    told = codling.load(tmp_path / "model", codec="diffc")
    assert len(data := codling.encode(picture, model=told, max_bytes=90)) == 90
    assert codling.decode(data, model=tmp_path / "model").size == (70, 50)
    with pytest.raises(RateError, match="at least"):
        codling.encode(picture, model=codec, max_bytes=12)
    with pytest.raises(RateError, match="levels 0 to 2"):
        codling.encode(picture, model=codec, level=3)


def test_a_compiled_run_has_the_same_losses(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced for real, but run by the plain backend, in both stages."""
    compiled, genuine = [], torch.compile

    def plainly(function, **_):  # type: ignore[no-untyped-def]
        compiled.append(function.__name__)
        return genuine(function, backend="eager")

    monkeypatch.setattr(torch, "compile", plainly)
    terms = []
    for name, changes in (("plain", {}), ("fast", {"compile": True})):
        config = tiny_run(pictures, steps=3, restore_from=2, log_every=1, **changes)
        train(config, tmp_path / name, device=CPU, report=lambda _: None)
        rows = read(tmp_path / name / LOG)
        terms.append([float(row[term] or 0) for row in rows for term in ("alignment", "commitment", "squared")])
    assert compiled == ["features", "correction"]
    assert np.allclose(*terms, rtol=1e-4)


def test_a_chain_passes_tokens_on_to_the_second_stage(pictures: Path, tmp_path: Path) -> None:
    first = train(
        tiny_run(pictures, steps=3, restore_from=None), tmp_path, device=CPU, report=lambda _: None, stage="a"
    )
    config = tiny_run(pictures, steps=2, restore_from=0, jump_share=0.25)
    second = train(config, tmp_path, device=CPU, report=lambda _: None, stage="b")
    tokens = {name: value for name, value in first.averaged_model().state_dict().items() if "quantisers" in name}
    assert tokens
    for name, value in tokens.items():
        assert torch.equal(second.model.state_dict()[name], value), name
    assert torch.equal(second.model.noise, first.model.noise)
