"""DiffC on a Stable Diffusion pipeline's UNet, with random weights."""

import pytest
import torch

from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.calibration import calibrate
from codling.codecs.diffc import DiffCCodec
from codling.codecs.diffc_stream import DiffCConfig
from codling.errors import ModelError
from tests.conftest import noise_picture
from tests.test_diffc import image_of


def test_any_stable_diffusion_unet() -> None:
    """A tiny random pipeline: bytes in, picture out; its timesteps are those of its schedule."""
    diffusers = pytest.importorskip("diffusers")
    from codling.codecs.stable_diffusion import StableDiffusionBackbone

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    schedule = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    for predicts in ("epsilon", "v_prediction"):
        backbone = StableDiffusionBackbone(
            unet, autoencoder, schedule.alphas_cumprod, torch.zeros(1, 3, 8), predicts=predicts
        )
        for step in (3, 500, 990):
            share = float(schedule.alphas_cumprod[step])
            assert float(backbone.timestep(share)) == pytest.approx(step, abs=1e-3)
        image = image_of(noise_picture(60, 90))
        tables = {False: calibrate(backbone, [image], conditional=False)}
        codec = DiffCCodec(backbone, DiffCConfig(memory=8), tables, name="sd", model_id=4)
        payload = codec.encode(image, RateTarget(noise_level=300))
        assert len(payload) > 10
        for options in (DecodeOptions(steps=1), DecodeOptions(steps=3)):
            decoded = codec.decode(payload, height=60, width=90, options=options)
            assert decoded.shape == image.shape
            assert decoded.isfinite().all()
    with pytest.raises(ModelError, match="must predict"):
        StableDiffusionBackbone(unet, autoencoder, schedule.alphas_cumprod, torch.zeros(1, 3, 8), predicts="sample")
