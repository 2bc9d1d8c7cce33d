"""The published OSCAR checkpoint and the Stable Diffusion under it, as the golden file's run had them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden.fill import filled

ADAPTERS = ("encoder", "decoder", "others")


def golden_oscar() -> dict[str, Any]:
    golden: dict[str, Any] = json.loads((Path(__file__).parent / "oscar.json").read_text())
    return golden


def tensor(prefix: str, name: str, shape: list[int]) -> Tensor:
    values = torch.from_numpy(filled(f"{prefix}.{name}", tuple(shape)))
    return F.normalize(values, dim=-1) if name.endswith("._codebook.embed") else values


def published_checkpoint(golden: dict[str, Any]) -> dict[str, Any]:
    """The dictionary that the published code saves."""
    parameters, layout = golden["parameters"], golden["checkpoint_layout"]
    hyper_encoders = {
        name: tensor("hyper_encoders", name, shape) for name, shape in parameters["hyper_encoders"].items()
    }
    for name, shape in parameters["hyper_encoders"].items():
        if name.endswith((".initted", ".cluster_size")):
            hyper_encoders[name] = torch.ones(shape)
        if name.endswith(".embed_avg"):
            hyper_encoders[name] = hyper_encoders[name.replace("embed_avg", "embed")]
    prompt = np.random.Generator(np.random.PCG64(5)).standard_normal((77, 1024), dtype=np.float32)
    return {
        "hyper_encoders": hyper_encoders,
        "embeddings": torch.nn.Parameter(torch.from_numpy(np.float32(0.02) * prompt)),
        **{f"unet_lora_{adapter}_modules": layout[f"unet_lora_{adapter}_modules"] for adapter in ADAPTERS},
        "rank_unet": golden["lora_rank"],
        "state_dict_unet": {name: tensor("unet", name, parameters["unet"][name]) for name in layout["state_dict_unet"]},
    }


def write_stable_diffusion(golden: dict[str, Any], directory: Path) -> None:
    """The base model in `diffusers` layout. Its first convolution is another than the trained one."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    unet, vae = UNet2DConditionModel(**golden["unet"]), AutoencoderKL(**golden["vae"])
    weights = {
        name.replace(".base_layer", ""): tensor("unet", name, shape)
        for name, shape in golden["parameters"]["unet"].items()
        if ".lora_" not in name
    }
    weights = {name: -value if name.startswith("conv_in.") else value for name, value in weights.items()}
    unet.load_state_dict(weights)
    vae.load_state_dict({name: tensor("vae", name, shape) for name, shape in golden["parameters"]["vae"].items()})
    unet.save_pretrained(directory / "unet")
    vae.save_pretrained(directory / "vae")
    DDPMScheduler(**golden["scheduler"]).save_pretrained(directory / "scheduler")
