"""What tests of our own OSCAR share: a small model, a smooth image, and a run of a few steps."""

from pathlib import Path

import torch
from torch.nn import functional as F

from codling.models.denoiser import DenoiserConfig
from codling.models.discriminator import DiscriminatorConfig
from codling.models.hyper_codec import HyperCodecConfig, Stack
from codling.models.oscar import Oscar, OscarConfig
from codling.models.wiener import WienerConfig, fit_spectrum
from codling.training.recipes import OscarTraining
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
