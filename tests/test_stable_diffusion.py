"""DiffC on Stable Diffusion: its velocity, its importer, and files from the command line; random weights, tiny size."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import codling
from codling.bitstream.container import CodecId
from codling.cli.main import app
from codling.codecs.stable_diffusion import StableDiffusionBackbone
from codling.errors import ConfigError, ModelError
from codling.models.stable_diffusion import StableDiffusion
from codling.models.stable_diffusion_parts import NoiseSchedule, UNetConfig
from codling.weights import registry
from codling.weights.importers.stable_diffusion import empty_prompt, import_stable_diffusion, settings
from codling.weights.store import Parts, load_parts, save_model
from tests.conftest import noise_picture
from tests.stable_diffusion import TOKENS, WIDTH, tiny_config, tiny_model, write_pipeline, write_scheduler

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
CPU = torch.device("cpu")
RUNNER = CliRunner()
# Of the UNet of Stable Diffusion 1.5 as published, where it differs from the defaults of `diffusers`.
UNET_1_5 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
# Of 2.1; 2.1-base is of the same shape, with a sample size of 64 and without upcasting.
UNET_2_1: dict[str, Any] = {
    "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "sample_size": 96,
    "use_linear_projection": True, "upcast_attention": True, "dual_cross_attention": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub") / "stable-diffusion"
    write_pipeline(tiny_model(), directory)
    return directory


@pytest.fixture
def changed(pipeline: Path, tmp_path: Path) -> Path:
    """A copy of the pipeline, to be changed."""
    return shutil.copytree(pipeline, tmp_path / "changed")


@pytest.fixture(scope="module")
def calibrated(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported and calibrated on the command line."""
    where = tmp_path_factory.mktemp("models")
    (where / "pictures").mkdir()
    Image.fromarray(noise_picture(60, 90, seed=1)).save(where / "pictures" / "a.png")
    source = ("--stable-diffusion", pipeline, "-o", where / "sd", "--precision", "float16")
    assert "calibrate" in run("models", "import", "stable-diffusion", *source)
    assert "calibrated on 1 pictures" in run(
        "calibrate", where / "sd", "--images", where / "pictures", "-o", where / "sd-diffc", "--set", "memory=8"
    )
    return where / "sd-diffc"


def run(*words: object) -> str:
    done = RUNNER.invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


class Oracle(nn.Module):
    """In the place of the UNet: knows the answer, and keeps what it was asked."""

    def __init__(self, answer: torch.Tensor):
        super().__init__()
        self.answer = answer
        self.state, self.timestep = torch.empty(0), torch.empty(0)

    def forward(self, state: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> "Oracle":
        self.state, self.timestep = state, timestep
        return self

    @property
    def sample(self) -> torch.Tensor:
        return self.answer


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("step", [3, 500, 990])
def test_a_perfect_prediction_is_the_velocity_from_noise_to_data(predicts: str, step: int) -> None:
    model = tiny_model(predicts)
    share = float(NoiseSchedule().signal_shares()[step])
    signal, spread = share**0.5, (1 - share) ** 0.5
    data, noise = torch.randn(2, 1, 4, 8, 8)
    oracle = Oracle(noise if predicts == "epsilon" else signal * noise - spread * data)
    model.unet = oracle
    t = signal / (signal + spread)
    velocity = StableDiffusionBackbone(model).velocity(b"", height=64, width=64)
    found = velocity(t * data + (1 - t) * noise, torch.tensor([t]))
    assert torch.allclose(oracle.state, signal * data + spread * noise, atol=1e-4)
    assert float(oracle.timestep) == pytest.approx(step, abs=1e-3)
    # Dividing by the signal's root, .08 at step 990, magnifies rounding.
    assert torch.allclose(found, data - noise, atol=1e-3)


def test_pictures_become_latents_and_back() -> None:
    backbone = StableDiffusionBackbone(tiny_model())
    assert (backbone.channels, backbone.stride, backbone.grid) == (4, 8, 16)
    image = torch.rand(1, 3, 48, 64) * 2 - 1
    state = backbone.to_state(image)
    assert state.shape == (1, 4, 6, 8)
    assert torch.equal(state, backbone.to_state(image))
    assert backbone.to_image(state).shape == image.shape


def test_files_from_the_command_line(calibrated: Path, tmp_path: Path) -> None:
    Image.fromarray(noise_picture(50, 70)).save(tmp_path / "a.png")
    run("encode", tmp_path / "a.png", "--model", calibrated, "--max-bytes", 60, "-o", tmp_path / "a.roe")
    data = (tmp_path / "a.roe").read_bytes()
    assert len(data) == 60
    assert codling.info(data).codec == "diffc"
    decode = ["decode", tmp_path / "a.roe", "--model", calibrated, "--device", "cpu", "-o", tmp_path / "b.png"]
    command = [sys.executable, "-m", "codling", *map(str, decode)]
    subprocess.run(command, check=True, capture_output=True)
    here = np.asarray(codling.decode(data, model=registry.load(calibrated, device=CPU))).astype(int)
    there = np.asarray(Image.open(tmp_path / "b.png")).astype(int)
    assert there.shape == (50, 70, 3)
    assert np.abs(there - here).max() <= 1


def test_sampling_on_and_beginnings_decode(calibrated: Path) -> None:
    codec = registry.load(calibrated, device=CPU)
    data = codling.encode(noise_picture(40, 40), model=codec, max_bytes=60)
    faithful = np.asarray(codling.decode(data, model=codec))
    assert not np.array_equal(faithful, np.asarray(codling.decode(data, model=codec, steps=3)))
    assert not np.array_equal(faithful, np.asarray(codling.decode(data[:25], model=codec)))


@torch.no_grad()
def test_the_import_computes_what_the_pipeline_does(pipeline: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    save_model(tmp_path, Parts(import_stable_diffusion(str(pipeline))))
    model = load_parts(tmp_path, device=CPU).model
    assert isinstance(model, StableDiffusion)
    text = CLIPTextModel.from_pretrained(pipeline, subfolder="text_encoder")
    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet")
    # A beginning, an end, and what this pipeline pads with.
    prompt = text(torch.tensor([[1, 2, 0, 0, 0]])).last_hidden_state
    assert torch.equal(model.prompt, prompt[0])
    state = torch.randn(1, 4, 8, 8)
    theirs = unet(state, 300, encoder_hidden_states=prompt).sample
    assert torch.allclose(model(state, torch.tensor(300.0)), theirs, atol=1e-5)
    assert model.config.predicts == "epsilon"


def test_published_text_encoders_keep_a_constant(changed: Path) -> None:
    from safetensors.torch import load_file, save_file

    before = empty_prompt(str(changed))
    assert before.shape == (TOKENS, WIDTH)
    weights = changed / "text_encoder" / "model.safetensors"
    tensors = load_file(weights) | {"text_model.embeddings.position_ids": torch.arange(TOKENS)[None]}
    save_file(tensors, weights, metadata={"format": "pt"})
    assert torch.equal(empty_prompt(str(changed)), before)
    del tensors[next(name for name in tensors if name.endswith("final_layer_norm.bias"))]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"text_encoder do not fit .*final_layer_norm\.bias"):
        empty_prompt(str(changed))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("unet", "folders unet, vae and scheduler"),
        ("vae", "folders unet, vae and scheduler"),
        ("scheduler", "folders unet, vae and scheduler"),
        ("text_encoder", "folders tokenizer and text_encoder"),
        ("tokenizer", "the tokenizer of .* knows . tokens and its text encoder 4"),
    ],
)
def test_incomplete_directories(missing: str, message: str, changed: Path) -> None:
    shutil.rmtree(changed / missing)
    with pytest.raises(ModelError, match=message):
        import_stable_diffusion(str(changed))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def misshape(path: Path) -> None:
    """The first tensor gets another shape."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors[min(tensors)] = torch.zeros(3, 5, 7)
    save_file(tensors, path, metadata={"format": "pt"})


def overwrite(path: Path) -> None:
    path.write_text('["nothing"]')


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (cut, "text_encoder/model.safetensors", "the text encoder of .* cannot be read: .*not fully covered"),
        (misshape, "text_encoder/model.safetensors", "the text encoder of .* cannot be read"),
        (overwrite, "text_encoder/config.json", "the text encoder of .* cannot be read"),
        (overwrite, "tokenizer/vocab.json", "the text encoder of .* cannot be read"),
        (cut, f"unet/{WEIGHTS}", "is not a Stable Diffusion that can be read"),
        (misshape, f"vae/{WEIGHTS}", "is not a Stable Diffusion that can be read"),
    ],
)
def test_damaged_files(damage: Callable[[Path], None], file: str, message: str, changed: Path) -> None:
    """Each library has types of its own for these."""
    damage(changed / file)
    with pytest.raises(ModelError, match=message):
        import_stable_diffusion(str(changed))


def test_settings_that_the_scheduler_cannot_compute_with(changed: Path) -> None:
    path = changed / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_start": "little"}))
    with pytest.raises(ModelError, match="is not a Stable Diffusion that can be read: unsupported operand"):
        import_stable_diffusion(str(changed))


def test_other_schedules_and_predictions(changed: Path) -> None:
    from diffusers import DDPMScheduler

    write_scheduler(changed, predicts="v_prediction")
    assert import_stable_diffusion(str(changed)).config.predicts == "v_prediction"
    write_scheduler(changed, schedule="linear")
    with pytest.raises(ModelError, match="a linear noise schedule"):
        import_stable_diffusion(str(changed))
    DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    ).save_pretrained(changed / "scheduler")
    with pytest.raises(ModelError, match="changed by rescale_betas_zero_snr"):
        import_stable_diffusion(str(changed))
    DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="sample"
    ).save_pretrained(changed / "scheduler")
    with pytest.raises(ConfigError, match="must predict epsilon or v_prediction, got 'sample'"):
        import_stable_diffusion(str(changed))


def test_other_networks(changed: Path) -> None:
    from diffusers import UNet2DConditionModel

    own = UNet2DConditionModel.load_config(changed, subfolder="unet")
    UNet2DConditionModel.from_config({**own, "in_channels": 9}).save_pretrained(changed / "unet")
    with pytest.raises(ConfigError, match=r"9 channels in and 4 out, but latents have 4; .* inpainting"):
        import_stable_diffusion(str(changed))
    UNet2DConditionModel.from_config({**own, "cross_attention_dim": 12}).save_pretrained(changed / "unet")
    with pytest.raises(ModelError, match="gives 8 numbers a token, but its UNet wants 12"):
        import_stable_diffusion(str(changed))


@pytest.mark.parametrize(
    ("published", "parameters", "grid"), [(UNET_1_5, 859_520_964, 64), (UNET_2_1, 865_910_724, 64)]
)
def test_the_shapes_of_the_published_models(published: dict[str, Any], parameters: int, grid: int) -> None:
    """Settings of the real UNets give their parameters, counted without memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(**{"block_out_channels": [320, 640, 1280, 1280], **published})
        config = replace(tiny_config(), unet=settings(UNetConfig, network, "unet"))
        model = StableDiffusion(replace(config, autoencoder=type(config.autoencoder)()))
    assert {name: value.shape for name, value in model.unet.state_dict().items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
    assert sum(value.numel() for value in model.unet.parameters()) == parameters
    assert model.config.grid == grid


def test_it_needs_calibration_and_has_no_other_codec(pipeline: Path, tmp_path: Path) -> None:
    save_model(tmp_path, Parts(tiny_model("v_prediction")))
    with pytest.raises(ModelError, match="not calibrated for DiffC yet: run `codling calibrate"):
        registry.load(tmp_path, device=CPU)
    with pytest.raises(ModelError, match="its own is diffc"):
        registry.load(tmp_path, device=CPU, codec=CodecId.OSCAR)
