"""OSCAR on the pixel-space flow: the hyper codec's linear start, measured noise levels, and what each stage trains."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import codling
from codling.bitstream.index_tables import fit_index_model
from codling.codecs.base import RateTarget
from codling.codecs.oscar import OscarCodec
from codling.codecs.oscar_pixel import PixelOscar
from codling.codecs.pseudo_times import measure
from codling.codecs.tiling import pad_to_grid
from codling.errors import ConfigError, RateError
from codling.models.denoiser import DenoiserConfig
from codling.models.discriminator import DiscriminatorConfig
from codling.models.hyper_codec import HyperCodec, HyperCodecConfig, Stack, patches
from codling.models.oscar import Oscar, OscarConfig
from codling.models.wiener import WienerConfig, fit_spectrum
from codling.training.engine import Engine
from codling.training.export import export_run
from codling.training.log import LOG, read
from codling.training.loop import CHECKPOINT, train
from codling.training.oscar_run import OscarRun
from codling.training.oscar_terms import Restored
from codling.training.recipes import OscarTraining, oscar_weights
from codling.weights.store import Parts, load_parts, save_model
from tests.conftest import noise_picture

CPU = torch.device("cpu")

HYPER = HyperCodecConfig(
    stacks=(Stack(16, 8), Stack(8, 4, 2)), codeword_width=6, widths=(8, 12), encoder_blocks=(1, 1),
    decoder_blocks=(1, 1), embedding=4,
)  # fmt: skip
CONFIG = OscarConfig(
    hyper=HYPER,
    denoiser=DenoiserConfig(
        widths=(8, 12), blocks=(1, 1), embedding=8, filter=WienerConfig(knots=8), tile=64, overlap=32
    ),
)


def tiny_oscar(config: OscarConfig = CONFIG) -> Oscar:
    """Random weights, those that begin at zero included, a spectrum and noise levels."""
    torch.manual_seed(0)
    model = Oscar(config).eval()
    for parameter in model.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.1)
    model.denoiser.filter.log_power.copy_(fit_spectrum([image(64, 64)[0]], config.denoiser.filter.knots))
    model.noise.copy_(torch.linspace(0.8, 0.4, len(model.noise)))
    return model


def image(height: int, width: int, *, seed: int = 0) -> torch.Tensor:
    """A smooth random image (1, 3, height, width) in [-1, 1]."""
    picture = torch.from_numpy(noise_picture(height, width, seed=seed)).permute(2, 0, 1)[None] / 127.5 - 1
    return F.avg_pool2d(picture, 5, stride=1, padding=2)


def tiny_run(pictures: Path, **changes: object) -> OscarTraining:
    settings: dict[str, object] = {
        "model": CONFIG, "prior": "", "data": str(pictures), "crop": 48, "batch": 4, "steps": 6, "warmup": 1,
        "learning_rate": 2e-3, "precision": "float32", "log_every": 3, "checkpoint_every": 3,
        "discriminator": DiscriminatorConfig(widths=(4, 8)),
    }  # fmt: skip
    return OscarTraining(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    directory = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        Image.fromarray(noise_picture(96, 110, seed=number)).save(directory / f"{number}.png")
    return directory


def test_the_linear_start_is_the_best_linear_codec() -> None:
    """Without quantisation its error is the energy of the components that were left out (Eckart and Young)."""
    hyper = HyperCodec(HYPER).eval()
    images = [image(64, 80, seed=seed) for seed in range(3)]
    hyper.fit_shortcuts(images)
    hyper.requires_grad_(False)
    for place in range(len(HYPER.widths)):
        points = torch.cat([patches(one, place).movedim(1, -1).flatten(0, 2) for one in images]).double()
        centred = points - points.mean(0)
        left_out = torch.linalg.svdvals(centred)[HYPER.codeword_width :].square().sum()
        decoded = [hyper.back[place](hyper.shortcut[place](patches(one, place))) for one in images]
        error = sum((back - patches(one, place)).square().sum() for back, one in zip(decoded, images, strict=True))
        assert float(error) == pytest.approx(float(left_out), rel=1e-3)


def test_each_quantiser_of_a_stack_takes_what_the_ones_before_left() -> None:
    hyper = HyperCodec(HYPER).eval().requires_grad_(False)
    features = torch.randn(2, HYPER.codeword_width, 3, 4)
    coded = hyper.quantise(features, 1)
    first, second = hyper.quantisers[1]
    left = features - first.codewords(coded.indices[0])
    assert torch.allclose(coded.inputs[1], left)
    assert torch.equal(coded.indices[1], second.nearest(left))
    assert torch.allclose(coded.codewords[1], features - left + second.codewords(coded.indices[1]), atol=1e-6)
    # Indices of the lower level are the beginning of those of the higher one.
    picture = image(32, 32)
    (low,), (high,) = hyper.encode(picture, [1]), hyper.encode(picture, [2])
    assert torch.equal(low[:, 0], high[:, 0])


def test_noise_levels_are_those_at_which_the_filter_errs_as_much() -> None:
    model = tiny_oscar()
    wanted = torch.tensor([0.7, 0.5, 0.2])
    model.set_noise(model.denoiser.filter.error(wanted))
    assert torch.allclose(model.noise, wanted, atol=1e-3)
    assert [level.time for level in model.levels] == pytest.approx((1 - wanted).tolist(), abs=1e-3)


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize(("height", "width"), [(32, 48), (80, 112)])
def test_decoding_is_deterministic_and_keeps_the_size(level: int, height: int, width: int) -> None:
    model = PixelOscar(tiny_oscar())
    with torch.inference_mode():
        tokens = model.encode(image(height, width), level)
        row = model.levels[level]
        assert tokens.indices.shape == (1, row.depth, height // row.stride, width // row.stride)
        decoded = model.decode(tokens, level)
        assert decoded.shape == (1, 3, height, width)
        assert torch.equal(decoded, model.decode(tokens, level))
        coarse = model.network.hyper.decode(tokens.indices, level)
    assert not torch.allclose(decoded, coarse, atol=1e-3)


def test_tiles_change_little_but_the_borders_of_their_context() -> None:
    """The middle of a tile sees the same surroundings with and without tiling, and the same grain."""
    whole, tiled = (
        PixelOscar(tiny_oscar(replace(CONFIG, denoiser=replace(CONFIG.denoiser, tile=tile)))) for tile in (128, 64)
    )
    with torch.inference_mode():
        tokens = whole.encode(image(128, 128), 2)
        a, b = whole.decode(tokens, 2), tiled.decode(tokens, 2)
    assert float((a - b).abs().mean()) < 0.1 * float(a.std())


def test_without_grain_the_noise_changes_nothing() -> None:
    model = tiny_oscar(replace(CONFIG, grain=0.0))
    coarse, levels = image(32, 32), torch.tensor([1])
    with torch.inference_mode():
        one, other = (model.restore(coarse, levels, torch.randn(1, 3, 32, 32)) for _ in range(2))
    assert torch.equal(one, other)


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


def test_shares_of_a_batch_with_and_without_tokens_have_the_terms_of_the_whole(pictures: Path) -> None:
    """The first half is jumps alone, the second has none."""
    batch = torch.cat([image(48, 48, seed=seed) for seed in range(4)])

    def terms(places: range) -> dict[str, float]:
        run = OscarRun(tiny_run(pictures, jump_share=0.5), CPU)
        run.model.load_state_dict(tiny_oscar().state_dict())
        run.places = places
        loss, terms = run.loss(batch[list(places)])
        loss.backward()
        return {name: float(term.detach()) for name, term in terms.items()}

    whole, *halves = (terms(places) for places in (range(4), range(2), range(2, 4)))
    for name in ("squared", "pixel", "cosine"):
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


def test_all_levels_cost_one_run_of_the_encoder(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    model, picture, runs = PixelOscar(tiny_oscar()), image(40, 56), 0
    padded = pad_to_grid(picture, model.grid)
    singly = [model.encode(padded, level) for level in range(3)]
    features = HyperCodec.features

    def counted(self: HyperCodec, image: torch.Tensor) -> list[torch.Tensor]:
        nonlocal runs
        runs += 1
        return features(self, image)

    monkeypatch.setattr(HyperCodec, "features", counted)
    together = model.encode_levels(padded, range(3))
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(singly, together, strict=True))
    codec = OscarCodec(model, name="tiny", model_id=1, index_models=[
        fit_index_model([tokens.indices[0, -1].numpy()], level.codebook_size)
        for tokens, level in zip(together, model.levels, strict=True)
    ])  # fmt: skip
    sizes = [len(codec.encode(picture, RateTarget(level=level))) for level in range(3)]
    runs = 0
    assert len(codec.encode(picture, RateTarget(max_bytes=sizes[0]))) == sizes[0]
    assert runs == 1
    monkeypatch.setattr(model, "rough_latent", lambda *_: padded + image(48, 64, seed=1))  # no negative cosines
    measure(model, [picture])
    assert runs == 2
    run = OscarRun(tiny_run(pictures), CPU)
    scores, columns = run.examine([noise_picture(48, 48, seed=seed) for seed in range(3)], 2)
    assert runs == 5
    assert len(scores) == 6
    assert [column.shape for column in columns] == [(2, 3, 48, 48)] * 4


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


def test_bad_settings_are_named(pictures: Path) -> None:
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
    with pytest.raises(ConfigError, match="jump_share must be between 0 and 1, got 2"):
        tiny_run(pictures, jump_share=2.0)
    with pytest.raises(ConfigError, match="weights must be"):
        OscarRun(tiny_run(pictures, weights={"pixel": 1.0}), CPU)
    with pytest.raises(ConfigError, match="no picture of at least 16 px"):
        OscarRun(tiny_run(pictures, restore_from=1), CPU).prepare(lambda: [np.zeros((64, 15, 3), np.uint8)])
    with pytest.raises(ConfigError, match="goes on from trained tokens"):
        OscarRun(tiny_run(pictures), CPU).prepare(lambda: [np.zeros((64, 64, 3), np.uint8)])
    with pytest.raises(ConfigError, match="not a denoiser like"):
        OscarRun(tiny_run(pictures, prior="diffc-xs", restore_from=1), CPU).prepare(
            lambda: [np.zeros((64, 64, 3), np.uint8)]
        )


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
    with pytest.raises(RateError, match="at least"):
        codling.encode(picture, model=codec, max_bytes=12)
    with pytest.raises(RateError, match="levels 0 to 2"):
        codling.encode(picture, model=codec, level=3)


def test_codebooks_are_stored_exactly_at_every_precision(tmp_path: Path) -> None:
    """They decide indices; large enough ones would be rounded to 8 bits."""
    hyper = replace(HYPER, stacks=(Stack(16, 1024), Stack(8, 800, 2)))
    model = tiny_oscar(replace(CONFIG, hyper=hyper))
    for precision in ("float16", "int8"):
        save_model(tmp_path / precision, Parts(model), precision=precision)  # type: ignore[arg-type]
        stored = load_parts(tmp_path / precision, device=CPU).model.state_dict()
        for name, value in model.state_dict().items():
            if ".quantisers." in name:
                assert torch.equal(stored[name], value), name


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
    first = train(tiny_run(pictures, steps=3, restore_from=3), tmp_path, device=CPU, report=lambda _: None, stage="a")
    config = tiny_run(pictures, steps=2, restore_from=0, jump_share=0.25)
    second = train(config, tmp_path, device=CPU, report=lambda _: None, stage="b")
    tokens = {name: value for name, value in first.averaged_model().state_dict().items() if "quantisers" in name}
    assert tokens
    for name, value in tokens.items():
        assert torch.equal(second.model.state_dict()[name], value), name
    assert torch.equal(second.model.noise, first.model.noise)
