"""Training: exact resume, named terms, data that is partly broken, and a run that ends as a model that codes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import codling
from codling.bitstream.index_tables import fit_index_model
from codling.bitstream.indices import decode_indices, encode_indices
from codling.configuration import from_dict, override, to_dict
from codling.errors import ConfigError
from codling.models.denoiser import DenoiserConfig
from codling.models.wiener import WienerConfig
from codling.training.augment import augmented
from codling.training.averages import CodebookAverage, WeightAverage
from codling.training.cod_run import CoDRun
from codling.training.data import batch_indices, load_pictures, training_batch
from codling.training.denoiser_run import DenoiserRun
from codling.training.export import export_run
from codling.training.log import LOG
from codling.training.loop import CHECKPOINT, train
from codling.training.recipes import RECIPES, DenoiserTraining
from codling.training.terms import ALWAYS, Draws, Objective, cod_step, total
from tests.conftest import noise_picture, tiny_config
from tests.training import CPU, png, tiny_run, write_shard


def weights(run: CoDRun) -> dict[str, torch.Tensor]:
    return {**run.model.state_dict(), **{f"average.{k}": v for k, v in run.average.values.items()}}


@pytest.mark.parametrize("codebook", ["average", "gradient"])
def test_a_resumed_run_equals_an_uninterrupted_one(pictures: Path, tmp_path: Path, codebook: str) -> None:
    config = tiny_run(pictures, codebook=codebook, quantise_from=2, denoise_from=3)
    whole = train(config, tmp_path / "whole", device=CPU, report=lambda _: None)
    part = CoDRun(config, CPU)
    data = load_pictures(pictures, crop=64).pictures
    for step in range(4):
        part.train_step(training_batch(data, step, batch=4, crop=64, seed=0))
    (tmp_path / "parts").mkdir()
    part.save(tmp_path / "parts" / CHECKPOINT)
    resumed = train(config, tmp_path / "parts", device=CPU, report=lambda _: None)
    assert resumed.step == whole.step == 8
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_a_run_stops_in_time_and_keeps_its_work(pictures: Path, tmp_path: Path) -> None:
    config = tiny_run(pictures, validation=str(pictures))
    lines: list[str] = []
    assert train(config, tmp_path, device=CPU, max_minutes=0, report=lines.append).step == 1
    assert train(config, tmp_path, device=CPU, report=lines.append).step == 8
    assert any("continuing" in line and "step 1" in line for line in lines)
    assert any("PSNR" in line for line in lines)
    assert not list(tmp_path.glob("*.tmp"))
    rows = (tmp_path / LOG).read_text().splitlines()
    assert set(ALWAYS) <= set(rows[0].split(","))
    assert [row.split(",")[0] for row in rows[1:]] == ["4", "8"]


def test_another_model_cannot_continue_a_run(pictures: Path, tmp_path: Path) -> None:
    CoDRun(tiny_run(pictures), CPU).save(tmp_path / CHECKPOINT)
    other = tiny_run(pictures, model=tiny_config(sigma_data=0.4))
    with pytest.raises(ConfigError, match="another output directory"):
        CoDRun(other, CPU).restore(tmp_path / CHECKPOINT)


def test_training_learns(pictures: Path) -> None:
    """The weighted loss on the first batch falls by a third within sixty steps."""
    config = tiny_run(pictures, steps=1000, learning_rate=4e-3)
    run = CoDRun(config, CPU)
    image = training_batch(load_pictures(pictures, crop=64).pictures, 0, batch=4, crop=64, seed=0)
    losses = [sum(run.train_step(image)[name] for name in ("flow", "reconstruction")) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.67 * np.mean(losses[:5])


@pytest.mark.parametrize("codebook", ["average", "gradient"])
def test_a_frozen_encoder_keeps_its_indices_while_the_rest_learns(pictures: Path, codebook: str) -> None:
    run = CoDRun(tiny_run(pictures, freeze_encoder_from=2, codebook=codebook), CPU)
    batches = [training_batch(load_pictures(pictures, crop=64).pictures, s, batch=4, crop=64, seed=0) for s in range(5)]

    def step(number: int) -> tuple[torch.Tensor, ...]:
        run.train_step(batches[number])
        codec = run.model.condition_codec
        parts = (codec.encoder.parameters(), codec.quantiser.parameters(), codec.decoder.parameters())
        return tuple(torch.cat([p.detach().flatten() for p in part]) for part in parts)

    before, last, *after = [step(number) for number in range(5)]
    assert not torch.equal(before[0], last[0])
    assert all(torch.equal(last[0], now[0]) and torch.equal(last[1], now[1]) for now in after)
    assert not torch.equal(last[2], after[-1][2])


def test_a_diverging_run_says_so(pictures: Path) -> None:
    run = CoDRun(tiny_run(pictures), CPU)
    with pytest.raises(ConfigError, match="diverged at step 0"):
        run.train_step(torch.full((4, 3, 64, 64), math.nan))


def test_terms_are_unweighted_and_weighted_once(pictures: Path) -> None:
    run = CoDRun(tiny_run(pictures), CPU)
    image = torch.rand(4, 3, 64, 64) * 2 - 1
    draws = Draws.make(image, range(4), batch=4, null_condition=0.5, one_step_share=0.5, seed=0, step=0)
    terms = cod_step(run.model, run.head, image, image, draws, Objective()).terms
    assert set(terms) == set(ALWAYS)
    choice = {"flow": 2.0, "reconstruction": 0.0, "commitment": 0.5, "codebook": 0.0}
    assert total(terms, choice).item() == pytest.approx(2 * terms["flow"].item() + 0.5 * terms["commitment"].item())
    # Skipped parts: without the transformer there is no flow, without the quantiser the picture is another one.
    skipped = cod_step(run.model, run.head, image, image, draws, Objective(quantise=False, denoise=False)).terms
    assert skipped["flow"].item() == 0
    assert skipped["reconstruction"].item() != terms["reconstruction"].item()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [({"flow": 1.0, "recon": 1.0}, "reconstruction"), ({"flow": 1.0}, "codebook, commitment, reconstruction")],
)
def test_unknown_and_missing_weights_are_errors(pictures: Path, chosen: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CoDRun(tiny_run(pictures, weights=chosen), CPU)


def test_draws_have_the_shares_asked_for_and_depend_on_the_step_alone() -> None:
    def draw(step: int, places: range = range(20_000)) -> Draws:
        state = torch.zeros(len(places), 1, 1, 1)
        return Draws.make(state, places, batch=20_000, null_condition=0.1, one_step_share=0.35, seed=5, step=step)

    first = draw(7)
    assert (first.t == 0).float().mean().item() == pytest.approx(0.35, abs=0.015)
    assert first.null.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert first.t[first.t > 0].logit().std().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(first.noise, draw(7).noise)
    assert not torch.equal(first.noise, draw(8).noise)
    assert first.noise.mean().item() == pytest.approx(0, abs=0.03)
    assert first.noise.std().item() == pytest.approx(1, abs=0.02)
    part = draw(7, range(300, 310))
    for name in ("t", "noise", "null"):
        assert torch.equal(getattr(part, name), getattr(first, name)[300:310]), name


def test_the_codebook_average_finds_clusters_and_revives_dead_codewords() -> None:
    centres = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) * 5
    # Each codeword starts off its cluster, and one is far from everything: it never wins a feature by itself.
    embedding = torch.cat([centres + 0.5, torch.full((1, 4), 100.0)])
    average = CodebookAverage(embedding)
    for step in range(300):
        generator = torch.Generator().manual_seed(step)
        features = centres[torch.randint(8, (256,), generator=generator)]
        features = features + 0.05 * torch.randn(features.shape, generator=generator)
        average.update(embedding, features, torch.cdist(features, embedding).argmin(1), seed=step)
    assert torch.cdist(centres, embedding).min(1).values.max() < 0.1
    assert embedding.abs().max() < 50


def test_a_batch_without_conditions_leaves_the_codebook_as_it_is() -> None:
    embedding = torch.randn(5, 3)
    average, before = CodebookAverage(embedding), embedding.clone()
    average.update(embedding, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), seed=0)
    assert torch.equal(embedding, before)
    average.update(embedding, torch.randn(40, 3), torch.arange(40) % 5, seed=0)
    count = average.count.clone()
    average.update(embedding, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), seed=1)
    assert torch.equal(average.count, count)


def test_the_weight_average_is_the_recursion() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average, expected = WeightAverage(model, 0.9), model.weight.item()
    for step in range(1, 200):
        model.weight.data.fill_(step)
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.values["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_broken_entries_are_counted_and_too_many_refused(pictures: Path, tmp_path: Path) -> None:
    pictures = {f"{i}.png": png(noise_picture(50, 50, seed=i)) for i in range(10)}
    write_shard(tmp_path / "a.tar", pictures)
    (tmp_path / "b.tar").write_bytes(b"not an archive" * 100)
    data = load_pictures(tmp_path, crop=48)
    assert (len(data.pictures), data.broken) == (10, 1)
    write_shard(tmp_path / "c.tar", {"bad.png": b"not a picture"})
    with pytest.raises(ConfigError, match="2 of 12 entries"):
        load_pictures(tmp_path, crop=48)


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a directory"):
        load_pictures(tmp_path / "nowhere", crop=64)
    with pytest.raises(ConfigError, match="no picture"):
        load_pictures(tmp_path, crop=64)


def test_epochs_are_permutations() -> None:
    seen = np.concatenate([batch_indices(step, batch=4, count=10, seed=1) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


@pytest.mark.parametrize("shape", [(64, 64), (50, 200), (300, 49)])
def test_crops_have_the_side_and_range_asked_for(shape: tuple[int, int]) -> None:
    rngs = [np.random.default_rng(seed) for seed in range(30)]
    crops = augmented([noise_picture(*shape)] * 30, rngs, crop=64, scales=(0.7, 1.3), device=CPU)
    assert crops.shape == (30, 3, 64, 64)
    assert crops.min() >= -1
    assert crops.max() <= 1


@pytest.mark.parametrize("size", [9, 64])
def test_fitted_tables_save_bits_on_dependent_indices(size: int) -> None:
    """Rows of a slow random walk: the tables' cost is below fixed length and near the walk's own entropy."""
    rng = np.random.default_rng(0)

    def walk() -> np.ndarray:
        return np.clip(np.cumsum(rng.integers(-1, 2, (16, 16)), axis=1) + size // 2, 0, size - 1)

    model = fit_index_model([walk() for _ in range(300)], size)
    test = [walk() for _ in range(10)]
    streams = [encode_indices(indices, size, model) for indices in test]
    assert 8 * np.mean([len(stream) for stream in streams]) / 256 < 0.75 * math.log2(size)
    for indices, stream in zip(test, streams, strict=True):
        assert np.array_equal(decode_indices(stream, (16, 16), size, model), indices)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_an_exported_run_codes_pictures(pictures: Path, tmp_path: Path, precision: str) -> None:
    run = train(tiny_run(pictures), tmp_path / "run", device=CPU, report=lambda _: None)
    export_run(run, tmp_path / "model", precision=precision, pictures=10)  # type: ignore[arg-type]
    codec = codling.load(tmp_path / "model")
    data = codling.encode(noise_picture(65, 130), model=codec)
    assert codling.decode(data, model=tmp_path / "model", steps=2).size == (130, 65)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_survive_a_round_trip_and_take_overrides(name: str) -> None:
    recipe = RECIPES[name]
    assert from_dict(type(recipe), to_dict(recipe)) == recipe
    changed = override(recipe, ["batch=7", "weight_decay=0.5"])
    assert (changed.batch, changed.weight_decay) == (7, 0.5)
    with pytest.raises(ConfigError, match="multiple"):
        override(recipe, ["crop=100"])
    with pytest.raises(ConfigError, match="did you mean"):
        override(recipe, ["step=7"])


def tiny_denoiser(pictures: Path, **changes: object) -> DenoiserTraining:
    model = DenoiserConfig(
        widths=(4, 8), blocks=(1, 1), embedding=8, filter=WienerConfig(knots=16), tile=64, overlap=16
    )
    settings = {"model": model, "data": str(pictures), "crop": 32, "batch": 2, "steps": 6, "warmup": 2, "log_every": 2}
    return DenoiserTraining(**{**settings, "checkpoint_every": 3, **changes})  # type: ignore[arg-type]


def test_a_denoiser_trains_resumes_and_becomes_a_codec(pictures: Path, tmp_path: Path) -> None:
    config = tiny_denoiser(pictures, validation=str(pictures))
    lines: list[str] = []
    whole = train(config, tmp_path / "whole", device=CPU, report=lines.append)
    assert any("coded gain at 0.9" in line for line in lines)
    train(config, tmp_path / "parts", device=CPU, max_minutes=0, report=lines.append)
    resumed = train(config, tmp_path / "parts", device=CPU, report=lines.append)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    export_run(whole, tmp_path / "model", precision="int8", error_pictures=2)
    codec = codling.load(tmp_path / "model")
    data = codling.encode(noise_picture(40, 70), model=codec, max_bytes=60)
    assert len(data) == 60
    assert codling.decode(data, model=codec).size == (70, 40)


def test_every_part_of_a_denoiser_learns_but_its_filter(pictures: Path, tmp_path: Path) -> None:
    """Layers start at zero, one behind the other; after some steps a gradient has reached them all."""
    config = tiny_denoiser(pictures, steps=40, learning_rate=1e-2)
    before = DenoiserRun(config, CPU).model.state_dict()
    run = train(config, tmp_path, device=CPU, report=lambda _: None)
    still = {name for name, value in run.model.named_parameters() if torch.equal(value, before[name])}
    assert not still
    filtered = run.model.filter.log_power
    train(tiny_denoiser(pictures, steps=42), tmp_path, device=CPU, report=lambda _: None)
    assert torch.equal(run.model.filter.log_power, filtered)
    assert filtered.std() > 1


def test_runs_of_another_kind_are_not_continued(pictures: Path, tmp_path: Path) -> None:
    train(tiny_denoiser(pictures, steps=1), tmp_path, device=CPU, report=lambda _: None)
    with pytest.raises(ConfigError, match="use another output directory"):
        train(tiny_run(pictures), tmp_path, device=CPU, report=lambda _: None)
