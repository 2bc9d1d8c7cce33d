"""The importer of the published OSCAR: every tensor has its place, and what is not the checkpoint is named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from codling.cli.main import app
from codling.errors import ModelError
from codling.models.oscar_stable_diffusion import OscarStableDiffusionConfig
from codling.models.stable_diffusion_parts import AutoencoderConfig, UNetConfig
from codling.weights.importers import oscar as importer
from codling.weights.importers.stable_diffusion import Pipeline
from tests.conftest import noise_picture
from tests.golden.oscar_parts import golden_oscar
from tests.oscar_published.conftest import agrees

pytest.importorskip("diffusers")
pytest.importorskip("peft")
CPU = torch.device("cpu")
Change = Callable[[dict[str, Any]], None]


@torch.no_grad()
def test_adapters_apart_compute_what_the_published_code_does(
    base: Pipeline, checkpoint: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    model = importer.model_from_published(checkpoint, base)
    assert "unet.conv_in.lora_A.default_encoder.weight" in model.state_dict()
    image = torch.from_numpy(arrays["image"])
    for level in (0, 7):
        tokens = model.encode(image, level)
        rough = model.rough_latent(tokens, level)
        assert agrees(tokens.indices[:, 0], arrays[f"rate{level}_indices"])
        assert agrees(model.velocity(rough, level), arrays[f"rate{level}_unet"])


def drop(group: str, name: str) -> Change:
    return lambda checkpoint: checkpoint[group].pop(name)


def put(group: str, name: str, value: Any) -> Change:
    return lambda checkpoint: checkpoint[group].__setitem__(name, value)


CODES = "3.quantizer._codebook.embed"
DOWN = "conv_in.lora_A.default_encoder.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            drop("hyper_encoders", "2.proj.12.bias"),
            r"missing from the checkpoint: hyper_encoders\.2\.decoder\.12\.bias",
        ),
        (put("hyper_encoders", "2.surprise", torch.zeros(1)), r"not in our model: hyper_encoders\.2\.surprise"),
        (put("hyper_encoders", "2.decoder.12.bias", torch.zeros(1)), "two tensors .* are our decoder.12.bias"),
        (put("hyper_encoders", "8.backbone.0.weight", torch.zeros(1)), "9 hyper-encoders; wanted 8"),
        (put("hyper_encoders", "module.0.surprise", torch.zeros(1)), "a tensor 'module.0.surprise'; wanted names that"),
        (put("hyper_encoders", "0", torch.zeros(1)), "a tensor '0'; wanted names that begin with the number"),
        (put("hyper_encoders", "1000000000.backbone.0.weight", torch.zeros(1)), r"9 hyper.* 0 to 7, got .*1000000000"),
        (put("hyper_encoders", "01.backbone.0.weight", torch.zeros(1)), "9 hyper-encoders; .* got 0, 01, 1, 2"),
        (lambda checkpoint: checkpoint["hyper_encoders"].clear(), "0 hyper-encoders; .* got none"),
        (drop("hyper_encoders", CODES), "not PerCo's"),
        (drop("state_dict_unet", DOWN), r"missing from the checkpoint: unet\.conv_in\.lora_A"),
        (put("state_dict_unet", "conv_out.surprise", torch.zeros(1)), r"not in our model: unet\.conv_out\.surprise"),
        (put("state_dict_unet", DOWN, torch.zeros(5, 4, 3, 3)), "rank 4, but conv_in.lora_A.* has 5"),
        (put("state_dict_unet", "conv_in.base_layer.bias", torch.zeros(5)), r"shape \(5,\), wanted \(32,\)"),
        (lambda checkpoint: checkpoint.update(rank_unet=16), "adapters have rank 16, but .* has 4"),
        (lambda checkpoint: checkpoint.update(embeddings=torch.zeros(77, 768)), r"prompt has shape \(77, 768\)"),
        (
            lambda checkpoint: checkpoint["unet_lora_others_modules"].append("mid_block.nothing"),
            "changes layers that this UNet has not: .*mid_block.nothing",
        ),
    ],
)
def test_every_tensor_is_consumed_and_every_one_filled(
    change: Change, message: str, base: Pipeline, checkpoint: dict[str, Any]
) -> None:
    changed = {key: value.copy() if isinstance(value, dict | list) else value for key, value in checkpoint.items()}
    change(changed)
    with pytest.raises(ModelError, match=message):
        importer.model_from_published(changed, base)


def test_files_that_are_not_the_checkpoint(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    path = tmp_path / "x.pkl"
    for content, message in [
        ({**checkpoint, "extra": 1}, "lacks nothing and has .'extra'. beside"),
        ({"rank_unet": 16}, "lacks .*'embeddings'"),
        ([1, 2], "is not a published OSCAR"),
    ]:
        torch.save(content, path)
        with pytest.raises(ModelError, match=message):
            importer.read_checkpoint(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="weights_only=True"):
        importer.read_checkpoint(path)


def test_directories_that_are_not_stable_diffusion_2_1(stable_diffusion: Path, tmp_path: Path) -> None:
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from safetensors.torch import load_file, save_file

    for missing in ("unet", "vae", "scheduler"):
        incomplete = tmp_path / missing
        shutil.copytree(stable_diffusion, incomplete)
        shutil.rmtree(incomplete / missing)
        with pytest.raises(ModelError, match=r"folders unet, vae and scheduler.*any copy of it will do"):
            importer.load_stable_diffusion(str(incomplete))

    other = tmp_path / "epsilon"
    shutil.copytree(stable_diffusion, other)
    settings = golden_oscar()["scheduler"]
    DDPMScheduler(**{**settings, "prediction_type": "epsilon"}).save_pretrained(other / "scheduler")
    with pytest.raises(ModelError, match=r"predicts epsilon; wanted .* not its -base model"):
        importer.load_stable_diffusion(str(other))

    DDPMScheduler(**settings).save_pretrained(other / "scheduler")
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.conv_in.weight"]
    save_file(tensors, weights)
    with pytest.raises(ModelError, match=r"vae do not fit their configuration: .*encoder\.conv_in"):
        importer.load_stable_diffusion(str(other))

    shutil.copytree(stable_diffusion / "vae", other / "vae", dirs_exist_ok=True)
    UNet2DConditionModel(**golden_oscar()["unet"], act_fn="gelu").save_pretrained(other / "unet")
    with pytest.raises(ModelError, match=r"settings that Stable Diffusion 1 and 2 do not: .*act_fn"):
        importer.load_stable_diffusion(str(other))


def test_our_settings_default_to_stable_diffusion_2_1() -> None:
    """The grid and the times of the real model, without its weights."""
    full = OscarStableDiffusionConfig(levels=(), unet=UNetConfig(), autoencoder=AutoencoderConfig())
    shares = full.schedule.signal_shares().sqrt()
    rounded = [round(float(shares[step]), 3) for step in importer.TIMESTEPS]
    assert rounded == [0.526, 0.652, 0.757, 0.79, 0.859, 0.877, 0.894, 0.91]


def test_import_and_encode_on_the_command_line(
    stable_diffusion: Path, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(checkpoint, tmp_path / "oscar.pkl")
    Image.fromarray(noise_picture(64, 64)).save(tmp_path / "a.png")
    model, runner = tmp_path / "model", CliRunner()
    weights = ["--weights", tmp_path / "oscar.pkl", "--stable-diffusion", stable_diffusion, "-o", model]
    command = [str(word) for word in ("models", "import", "oscar", *weights)]
    done = runner.invoke(app, [*command, "--precision", "float16"])
    assert done.exit_code == 0, done.output
    assert "use it with --model" in done.stdout
    again = runner.invoke(app, command)
    assert "--force" in str(again.exception)
    done = runner.invoke(app, ["encode", str(tmp_path / "a.png"), "-m", str(model), "--level", "1"])
    assert done.exit_code == 0, done.output
    # A header of 10 bytes, level and mode, 4 gains, and 2 x 2 tokens of 10 bits.
    assert (tmp_path / "a.roe").stat().st_size == 10 + 1 + 4 + 5
