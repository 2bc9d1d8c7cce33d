"""Loss terms beyond the plain ones: one-step, feature alignment, latent space."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import codling
from codling.errors import ConfigError, ModelError
from codling.models.cod import CoD
from codling.models.dit import TransformerConfig
from codling.training import alignment, cod_run
from codling.training.alignment import BackboneTeacher, load_teacher, misalignment
from codling.training.cod_run import CoDRun
from codling.training.data import load_pictures, training_batch
from codling.training.export import export_run
from codling.training.loop import train
from codling.training.perceptual import PERCEPTUAL
from codling.training.recipes import oscar_weights, published_weights
from codling.training.terms import TERMS, Draws, Objective, cod_step, total
from tests.conftest import noise_picture, tiny_config, tiny_model
from tests.training import CPU, tiny_run

WIDTH = 5


class Pooling(nn.Module):
    """A backbone whose features are known: each patch's mean colour, in the layout of some family."""

    def __init__(self, layout: str, *, patch: int = 4, stride: int = 4, only: int | None = None):
        """only: the side of the only pictures that it takes."""
        super().__init__()
        self.layout, self.patch_size, self.embed_dim, self.only = layout, patch, 3, only
        self.num_features, self.patch_embed = 3, SimpleNamespace(patch_size=(patch, patch))
        self.feature_info = [{"reduction": 2}, {"reduction": stride}]
        self.pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "input_size": (3, only, only)}
        if only:
            self.pretrained_cfg["fixed_input_size"] = True

    def forward_features(self, image: Tensor) -> Any:
        assert self.only is None or image.shape[-2:] == (self.only, self.only)
        grid = F.avg_pool2d(image, self.patch_size)
        tokens = grid.flatten(2).transpose(1, 2)
        return {
            "dictionary": lambda: {"x_norm_patchtokens": tokens},
            "prefixed": lambda: torch.cat([torch.full_like(tokens[:, :2], 9.0), tokens], 1),
            "maps": lambda: grid,
            "channels last": lambda: grid.permute(0, 2, 3, 1),
            "coarse": lambda: F.avg_pool2d(grid, 2),
            "pooled": lambda: tokens.mean(1, keepdim=True),
            "several": lambda: [tokens, tokens],
        }[self.layout]()


class Stripes:
    """A teacher that tells where it is bright, in `WIDTH` channels."""

    width = WIDTH

    def features(self, image: Tensor, *, rows: int, columns: int) -> Tensor:
        gray = F.adaptive_avg_pool2d(image.mean(1, keepdim=True), (rows, columns))
        return torch.cat([gray, -gray, gray.square(), torch.ones_like(gray), gray.abs()], 1)


@pytest.fixture
def taught(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> CoDRun:
    """A run with the stand-in teacher."""
    monkeypatch.setattr(cod_run, "load_teacher", lambda name, device: Stripes())
    monkeypatch.setattr(alignment, "PROJECTION_WIDTH", 16)
    return CoDRun(tiny_run(pictures, teacher="stripes", align_block=1, steps=1000, learning_rate=4e-3), CPU)


def drawn(image: Tensor, **changes: object) -> Draws:
    settings = {"null_condition": 0.0, "one_step_share": 0.0, "seed": 0, "step": 0}
    return Draws.make(image, range(len(image)), batch=len(image), **{**settings, **changes})  # type: ignore[arg-type]


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def terms_of(run: CoDRun, image: Tensor, draws: Draws, **objective: object) -> dict[str, Tensor]:
    return cod_step(tiny_model(), run.head, image, image, draws, Objective(**objective)).terms  # type: ignore[arg-type]


def test_both_readings_of_one_step_are_one_term_at_the_start_of_time(pictures: Path) -> None:
    """With every sample at t = 0 the flow term is the error of the one-step picture."""
    run, image = CoDRun(tiny_run(pictures), CPU), images()
    shared = terms_of(run, image, drawn(image, one_step_share=1.0), one_step_pass=True)
    added = terms_of(run, image, drawn(image), one_step_pass=True)
    assert shared["flow"].item() == pytest.approx(shared["one_step"].item(), rel=1e-5)
    # The second pass has the same noise, so it does not depend on where the first one is.
    assert added["one_step"].item() == pytest.approx(shared["one_step"].item(), rel=1e-5)
    assert added["flow"].item() != pytest.approx(added["one_step"].item(), rel=1e-3)


def test_the_added_one_step_term_is_the_error_of_what_is_decoded_and_is_learned(pictures: Path) -> None:
    image = images()
    run = CoDRun(tiny_run(pictures), CPU)
    draws, model = drawn(image), tiny_model()
    term = terms_of(run, image, draws, one_step_pass=True)["one_step"]
    condition = model.condition_codec.decode(model.condition_codec.encode(image))
    decoded = draws.noise + model.velocity(draws.noise, torch.zeros(4), condition)
    assert term.item() == pytest.approx((decoded - image).square().mean().item(), rel=1e-4)

    weights = {**published_weights(), "flow": 0.0, "reconstruction": 0.0}
    run = CoDRun(tiny_run(pictures, one_step_pass=True, weights=weights, steps=1000, learning_rate=4e-3), CPU)
    image = training_batch(load_pictures(pictures, crop=64).pictures, 0, batch=4, crop=64, seed=0)
    errors = [run.train_step(image)["one_step"] for _ in range(30)]
    assert np.mean(errors[-3:]) < 0.95 * np.mean(errors[:3])


def test_every_term_has_a_weight_to_set() -> None:
    assert set(published_weights()) == set(TERMS)
    assert set(PERCEPTUAL) <= set(oscar_weights())


def test_terms_that_a_run_has_need_a_weight(pictures: Path) -> None:
    weights = {"flow": 1.0, "reconstruction": 1.0, "commitment": 0.25, "codebook": 0.0}
    CoDRun(tiny_run(pictures, weights=weights), CPU)
    with pytest.raises(ConfigError, match="no weight for one_step"):
        CoDRun(tiny_run(pictures, weights=weights, one_step_pass=True), CPU)


def test_tokens_are_those_after_the_block_asked_for() -> None:
    config = tiny_config(transformer=TransformerConfig(width=16, heads=2, blocks=3, head_blocks=1, head_width=4))
    torch.manual_seed(0)
    model = CoD(config)
    x, t, condition = torch.randn(2, 3, 32, 48), torch.rand(2), torch.randn(2, 16, 2, 3)
    outputs, tokens = zip(*(model.velocity_and_tokens(x, t, condition, block=block) for block in range(4)), strict=True)
    assert all(torch.equal(output, model.velocity(x, t, condition)) for output in outputs)
    assert tokens[0].shape == (2, 6, 16)
    seen: list[Tensor] = []
    for layer in model.transformer.blocks:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model.velocity(x, t, condition)
    assert all(torch.equal(kept, made) for kept, made in zip(tokens[1:], seen, strict=True))


def test_tokens_finer_than_the_condition_share_its_places() -> None:
    coarse = TransformerConfig(width=16, heads=2, blocks=1, head_blocks=1, head_width=4)
    torch.manual_seed(0)
    model = CoD(tiny_config(transformer=replace(coarse, patch=8)))
    torch.nn.init.normal_(model.transformer.head.out.weight, std=0.3)
    x, t, condition = torch.randn(2, 3, 32, 48), torch.rand(2), torch.randn(2, 16, 2, 3)
    _, tokens = model.velocity_and_tokens(x, t, condition, block=0)
    assert tokens.shape == (2, 4 * 6, 16)
    repeated = condition.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(model.velocity(x, t, condition), model.velocity(x, t, repeated))
    with pytest.raises(ConfigError, match="patch must divide that, got 12"):
        tiny_config(transformer=replace(coarse, patch=12))


def test_fine_tokens_train_with_a_teacher(pictures: Path, taught: CoDRun) -> None:
    fine = TransformerConfig(width=16, heads=2, blocks=1, head_blocks=1, head_width=4, patch=8)
    run = CoDRun(replace(taught.config, model=tiny_config(transformer=fine)), CPU)
    image = training_batch(load_pictures(pictures, crop=64).pictures, 0, batch=4, crop=64, seed=0)
    terms = [run.train_step(image) for _ in range(20)]
    for name in ("alignment", "reconstruction"):
        assert terms[-1][name] < 0.8 * terms[0][name], name


def test_misalignment_is_one_minus_the_cosine() -> None:
    target = torch.randn(3, 7, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(misalignment(2 * target, target), torch.zeros(3), atol=1e-6)
    assert torch.allclose(misalignment(-target, target), torch.full((3,), 2.0), atol=1e-6)
    across = torch.stack([-target[:, 1], target[:, 0], *6 * [torch.zeros_like(target[:, 0])]], 1)[:, :7]
    assert torch.allclose(misalignment(across, target), torch.ones(3), atol=1e-6)


def test_networks_learn_what_the_teacher_sees(taught: CoDRun, pictures: Path) -> None:
    image = training_batch(load_pictures(pictures, crop=64).pictures, 0, batch=4, crop=64, seed=0)
    terms = [taught.train_step(image) for _ in range(30)]
    for name in ("alignment", "codec_alignment"):
        assert terms[-1][name] < 0.5 * terms[0][name], name


def test_alignment_reaches_the_blocks_before_it_and_nothing_without_a_condition(taught: CoDRun) -> None:
    image, model = images(), tiny_model().requires_grad_(True)
    features = Stripes().features(image, rows=4, columns=4)

    def terms(null: float, **objective: bool) -> dict[str, Tensor]:
        draws = drawn(image, null_condition=null)
        goal = Objective(align_block=1, **objective)  # type: ignore[arg-type]
        return cod_step(model, taught.head, image, image, draws, goal, teacher_features=features).terms

    terms(0.0)["alignment"].backward()
    assert model.transformer.blocks[0].mlp.down.weight.grad is not None
    assert model.transformer.head.out.weight.grad is None
    assert terms(1.0)["codec_alignment"].item() == 0
    assert terms(1.0)["alignment"].item() > 0
    assert terms(0.0, denoise=False)["alignment"].item() == 0
    weights = published_weights()
    assert total(terms(0.0), weights).item() == pytest.approx(
        sum(weights[name] * term.item() for name, term in terms(0.0).items()), rel=1e-5
    )


def test_the_teacher_is_no_part_of_a_checkpoint_or_of_the_model(taught: CoDRun, tmp_path: Path) -> None:
    taught.save(tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert {name.split(".")[0] for name in state["head"]} == {"reconstruction", "tokens", "condition"}
    assert set(state["model"]) == set(tiny_model().state_dict())


@pytest.mark.parametrize("layout", ["dictionary", "prefixed", "maps", "channels last"])
def test_features_lie_where_the_picture_has_them(layout: str) -> None:
    teacher = BackboneTeacher(Pooling(layout), width=3, patch=4, mean=(0.0,) * 3, deviation=(1.0,) * 3)
    image = torch.rand(2, 3, 32, 48) * 2 - 1
    features = teacher.features(image, rows=2, columns=3)
    assert features.shape == (2, 3, 2, 3)
    smooth = F.interpolate((image + 1) / 2, (8, 12), mode="bicubic", antialias=True, align_corners=False)
    assert torch.allclose(features, F.avg_pool2d(smooth, 4), atol=1e-5)


def test_coarse_features_are_interpolated_and_pixels_normalised() -> None:
    teacher = BackboneTeacher(Pooling("coarse"), width=3, patch=4)
    white = teacher.features(torch.ones(1, 3, 64, 64), rows=4, columns=4)
    assert white.shape == (1, 3, 4, 4)
    expected = (1 - torch.tensor(alignment.IMAGENET_MEAN)) / torch.tensor(alignment.IMAGENET_DEVIATION)
    assert torch.allclose(white[0, :, 1, 2], expected, atol=1e-4)


def test_teachers_from_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs torchvision: pip install 'codling\[timm\]'"):
        load_teacher("timm/vit_tiny", device=CPU)

    timm = ModuleType("timm")
    backbones = {
        # Transformers that can be told to take any size: a place a patch, or coarser than their patches.
        "plain": lambda **_: Pooling("prefixed", patch=2, stride=2),
        "coarser": lambda **_: Pooling("channels last", patch=4, stride=32),
        # Others do not know the word.
        "convolution": lambda: Pooling("maps", patch=16, stride=32),
        "one size": lambda: Pooling("prefixed", patch=4, only=36),
        "pooled": lambda: Pooling("pooled", only=36),
        "several": lambda: Pooling("several"),
    }

    def create_model(name: str, *, pretrained: bool, num_classes: int, **rest: bool) -> nn.Module:
        if name not in backbones:
            raise RuntimeError(f"Unknown model ({name})")
        assert pretrained
        assert rest in ({}, {"dynamic_img_size": True})
        return backbones[name](**rest)

    timm.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    ramp = (
        torch.linspace(-1, 1, 6).view(1, 1, 1, 6).expand(1, 3, 4, 6).repeat_interleave(16, 2).repeat_interleave(16, 3)
    )
    for name in ("plain", "coarser", "convolution", "one size"):
        teacher = load_teacher(f"timm/{name}", device=CPU)
        assert teacher is not None
        found = teacher.features(ramp, rows=4, columns=6)
        assert found.shape == (1, 3, 4, 6), name
        # Brighter to the right and alike from top to bottom, as the picture is.
        assert (found[..., 1:] > found[..., :-1]).all(), name
        assert torch.allclose(found[:, :, :1].expand_as(found), found, atol=1e-4), name
        # A picture that is coded in 4 x 6 places of 16 px loses nothing on the way in.
        assert isinstance(teacher, alignment.BackboneTeacher)
        assert teacher.patch == (2 if name == "plain" else 16)
    for name, said in (("pooled", r"got one of shape \(1, 1, 3\)"), ("several", "got a list")):
        teacher = load_teacher(f"timm/{name}", device=CPU)
        assert teacher is not None
        with pytest.raises(ConfigError, match=said):
            teacher.features(ramp, rows=4, columns=6)
    with pytest.raises(ConfigError, match="Unknown model"):
        load_teacher("timm/nothing", device=CPU)


def test_teachers_from_torch_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object]] = []

    def load(repository: str, name: str, *, pretrained: bool, **_: object) -> nn.Module:
        asked.append((name, pretrained))
        return Pooling("dictionary", patch=14)

    def weights(url: str, *, map_location: str, weights_only: bool) -> dict[str, Tensor]:
        asked.append((url.rsplit("/", 1)[-1], weights_only))
        return {}

    monkeypatch.setattr(torch.hub, "load", load)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", weights)
    teacher = load_teacher("dinov2_vits14", device=CPU)
    assert teacher is not None
    assert teacher.features(torch.zeros(1, 3, 32, 32), rows=2, columns=2).shape == (1, 3, 2, 2)
    # Nothing is unpickled: the architecture comes without weights, and those by themselves.
    assert asked == [("dinov2_vits14", False), ("dinov2_vits14_pretrain.pth", True)]

    def offline(*_: object, **__: object) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load", offline)
    with pytest.raises(ConfigError, match="teacher=none"):
        load_teacher("dinov2_vitb14", device=CPU)


def test_teachers_that_do_not_exist(pictures: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean dinov2_vitb14"):
        load_teacher("dinov2_vitb16", device=CPU)
    with pytest.raises(ConfigError, match="unknown teacher 'clip'"):
        CoDRun(tiny_run(pictures, teacher="clip"), CPU)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random autoencoder of stride 8 in the layout of `diffusers`."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = diffusers.AutoencoderKL(
        **kinds, block_out_channels=[8, 8, 8, 8], latent_channels=4, norm_num_groups=4, layers_per_block=1
    )
    directory = tmp_path_factory.mktemp("autoencoder")
    vae.save_pretrained(directory)
    return directory


def latent(**changes: object) -> dict[str, object]:
    transformer = TransformerConfig(head="ddt", channels=4, patch=2, width=16, heads=2, blocks=1, head_blocks=1)
    return {"model": tiny_config(space="sd-vae", transformer=transformer, sigma_data=None), **changes}


def test_a_latent_model_trains_resumes_and_becomes_a_codec(pictures: Path, tmp_path: Path, autoencoder: Path) -> None:
    config = tiny_run(pictures, **latent(autoencoder=str(autoencoder), validation=str(pictures), steps=4))
    lines: list[str] = []
    whole = train(config, tmp_path / "whole", device=CPU, report=lines.append)
    assert any("PSNR at 2 steps" in line and "gain" not in line for line in lines)
    train(config, tmp_path / "parts", device=CPU, max_minutes=0, report=lines.append)
    resumed = train(config, tmp_path / "parts", device=CPU, report=lines.append)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    assert not any("vae" in name for name in whole.model.state_dict())
    export_run(whole, tmp_path / "model", pictures=5)
    data = codling.encode(noise_picture(50, 70), model=tmp_path / "model")
    assert codling.decode(data, model=tmp_path / "model", steps=1).size == (70, 50)


def test_latent_terms_are_of_latents(pictures: Path, autoencoder: Path) -> None:
    run = CoDRun(tiny_run(pictures, **latent(autoencoder=str(autoencoder))), CPU)
    image = images()
    state = run.autoencoder.encode(image)
    _, terms = run.loss(image)
    draws = Draws.make(state, range(4), batch=4, null_condition=0.1, one_step_share=0.0, seed=0, step=0)
    # A fresh model's velocity is zero, so the flow term is the size of its target.
    assert state.shape == (4, 4, 8, 8)
    assert terms["flow"].item() == pytest.approx((state - draws.noise).square().mean().item(), rel=1e-4)


def test_latent_training_without_its_autoencoder(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set autoencoder=DIR"):
        CoDRun(tiny_run(pictures, **latent()), CPU)
    with pytest.raises(ModelError, match="cannot load the autoencoder"):
        CoDRun(tiny_run(pictures, **latent(autoencoder=str(tmp_path))), CPU)
