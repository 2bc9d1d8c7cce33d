"""Training of the small denoiser: how much better than the Wiener filter it is, at every noise level."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from codling.models.denoiser import Denoiser
from codling.models.wiener import fit_spectrum
from codling.training.recipes import DenoiserTraining
from codling.training.run import Run

# Ratio of power to noise from which a frequency counts as coded in validation.
VALIDATION_RATIO = 0.7
VALIDATION_NOISE = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1)


class DenoiserRun(Run[DenoiserTraining]):
    """A denoiser, and the spectrum of photographs that its filter has from the start."""

    def __init__(self, config: DenoiserTraining, device: torch.device):
        torch.manual_seed(config.seed)
        model = Denoiser(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(config, device, model, nn.Module())

    def prepare(self, pictures: list[np.ndarray]) -> None:
        """Give the filter the spectrum of the pictures."""
        images = [torch.from_numpy(picture / np.float32(127.5) - 1).permute(2, 0, 1) for picture in pictures]
        self.model.filter.log_power.copy_(fit_spectrum(images, self.config.model.filter.knots))

    def loss(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error over the filter's own, picture by picture, so that no noise level and no texture rules.

        A share of the filter's expected error is added below the line: flat pictures would weigh too much without it.
        """
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.step) % 2**63)
        noise = noise_levels(len(image), generator).to(self.device)
        s = noise.view(-1, 1, 1, 1)
        x = (1 - s) * image + s * torch.randn(image.shape, generator=generator).to(self.device)
        least = least_ratios(len(image), self.config.hidden_share, generator).to(self.device)
        with torch.no_grad():
            x = self.model.filter.hide(x, noise, least)
            estimate = self.model.filter(x, noise).contiguous(memory_format=torch.channels_last)
            scale = self.model.scale(noise)
        with self.autocast():
            correction = self.model.correction(x.contiguous(memory_format=torch.channels_last), estimate, noise)
        before = (estimate - image).square().mean((1, 2, 3))
        after = (estimate + scale * correction.float() - image).square().mean((1, 2, 3))
        weight = 1 / (before + 0.15 * scale.view(-1).square())
        loss = (after * weight).mean()
        return loss, {"error over the filter's": loss / (before * weight).mean()}

    def new_model(self) -> nn.Module:
        return Denoiser(self.config.model)

    def networks(self, config: DenoiserTraining) -> object:
        return (config.model.widths, config.model.blocks, config.model.embedding, config.model.filter)

    @torch.no_grad()
    def gains(self, pictures: list[np.ndarray], *, least: float = 0.0) -> list[float]:
        """PSNR above the filter's in dB on centre crops, mean of the pictures, at each of `VALIDATION_NOISE`.

        least: frequencies below this ratio of power to noise are hidden from both.
        """
        model, crop, out = self.averaged_model(), self.config.crop, []
        for level in VALIDATION_NOISE:
            gains = []
            for number, picture in enumerate(pictures):
                top, left = (picture.shape[0] - crop) // 2, (picture.shape[1] - crop) // 2
                square = picture[top : top + crop, left : left + crop] / np.float32(127.5) - 1
                image = torch.from_numpy(square).permute(2, 0, 1)[None].to(self.device)
                n = torch.randn(image.shape, generator=torch.Generator().manual_seed(number)).to(self.device)
                noise = torch.tensor([level], device=self.device)
                x = model.filter.hide((1 - level) * image + level * n, noise, torch.full_like(noise, least))
                with self.autocast():
                    learned = model(x, noise)
                errors = [(estimate - image).square().mean() for estimate in (model.filter(x, noise), learned)]
                gains.append(10 * math.log10(float(errors[0] / errors[1])))
            out.append(float(np.mean(gains)))
        return out

    def validate(self, pictures: list[np.ndarray]) -> str:
        whole, hidden = self.gains(pictures), self.gains(pictures, least=VALIDATION_RATIO)
        rows = zip(VALIDATION_NOISE, whole, hidden, strict=True)
        return "gain over the filter in dB at noise " + ", ".join(
            f"{level:g}: {a:.2f} ({b:.2f} where only what is coded is known)" for level, a, b in rows
        )


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Noise fractions (count,) to train on: three in four where few bytes lead, the rest down to almost none."""
    u = torch.rand(count, generator=generator)
    low = torch.rand(count, generator=generator) < 0.25
    return torch.where(low, 0.02 + 0.38 * u, 0.4 + 0.595 * u)


def least_ratios(count: int, hidden_share: float, generator: torch.Generator) -> Tensor:
    """Ratios of power to noise (count,) below which frequencies are hidden: 0 for some, else 2^-2.5 to 2^1.5."""
    ratios = 2 ** (4 * torch.rand(count, generator=generator) - 2.5)
    return torch.where(torch.rand(count, generator=generator) < hidden_share, ratios, 0.0)
