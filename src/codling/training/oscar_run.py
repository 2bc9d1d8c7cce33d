"""Training of OSCAR: first the hyper-encoders of all rates, then the denoiser that restores what they keep."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.errors import ConfigError
from codling.models.denoiser import Denoiser
from codling.models.discriminator import Discriminator, hinge_discriminator
from codling.models.hyper_codec import SAMPLES, Coded
from codling.models.oscar import Oscar
from codling.training import oscar_terms
from codling.training.averages import CodebookAverage
from codling.training.denoiser_run import least_ratios
from codling.training.recipes import OscarTraining, oscar_weights
from codling.training.run import Run
from codling.weights.registry import load_network

# Decay of the running mean of each level's error, from which its noise level is taken when stage 1 ends.
ERROR_DECAY = 0.99
# States without tokens: range of noise fractions, and how many of them lack the frequencies not worth coding.
LOWEST_JUMP, HIGHEST_JUMP, HIDDEN_SHARE = 0.3, 0.97, 0.8
# Pictures that the linear start is fitted on.
FIT_PICTURES = 100


class OscarRun(Run[OscarTraining]):
    """An OSCAR model, the running means of its codebooks and errors, and a discriminator with its own optimiser."""

    def __init__(self, config: OscarTraining, device: torch.device):
        if set(config.weights) != set(oscar_weights()):
            raise ConfigError(f"training: weights must be of {sorted(oscar_weights())}, got {sorted(config.weights)}")
        torch.manual_seed(config.seed)
        model = Oscar(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.hyper.quantisers.requires_grad_(False)
        super().__init__(config, device, model, nn.Module())
        self.discriminator = Discriminator(config.discriminator).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.discriminator_optimiser = torch.optim.AdamW(
            self.discriminator.parameters(), lr=config.discriminator_learning_rate, betas=(0.5, 0.95)
        )
        self.codebooks = [CodebookAverage(embedding) for embedding in self._embeddings()]
        self.errors = torch.ones(len(config.model.hyper.levels), device=device)
        self._coded: list[Coded] = []

    @property
    def restoring(self) -> bool:
        """Whether the second stage has begun."""
        return self.step >= self.config.restore_from

    @property
    def adversarial(self) -> bool:
        """Whether there is an adversary by now."""
        return self.restoring and self.config.weights["adversarial"] > 0 and self.step >= self.config.adversarial_from

    def prepare(self, pictures: list[np.ndarray]) -> None:
        """Start from the prior's denoiser and the pictures' principal components."""
        if self.config.prior:
            prior = load_network(self.config.prior, device=self.device)
            if not isinstance(prior, Denoiser) or prior.config != self.config.model.denoiser:
                raise ConfigError(f"prior {self.config.prior!r} is not a denoiser like model.denoiser; choose another")
            self.model.denoiser.load_state_dict(prior.state_dict())
        images, grid = [], self.config.model.grid
        for picture in pictures[:FIT_PICTURES]:
            height, width = (side // grid * grid for side in picture.shape[:2])
            images.append(torch.from_numpy(picture[:height, :width] / np.float32(127.5) - 1).permute(2, 0, 1)[None])
        self.model.hyper.fit_shortcuts(images)
        self.average.reset(self.model)

    def loss(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        terms = self._restoration(image) if self.restoring else self._alignment(image)
        return torch.stack([self.config.weights[name] * term for name, term in terms.items()]).sum(), terms

    def _alignment(self, image: Tensor) -> dict[str, Tensor]:
        """Stage 1: all levels' coarse images against the image.

        Each level's loss counts in units of its own error, commitment as well: in units of pixels it would be too weak
        beside the logarithm, and features would outgrow their codewords.
        """
        hyper = self.model.hyper
        errors: list[Tensor] = []
        commitments: list[Tensor] = []
        with self.autocast():
            self._coded = [hyper.quantise(features, stack) for stack, features in enumerate(hyper.features(image))]
            for level, chosen in enumerate(hyper.config.levels):
                coded = self._coded[chosen.stack]
                codewords = coded.codewords[chosen.depth - 1]
                errors.append(F.mse_loss(hyper.coarse(codewords, level), image))
                a_sample = coded.commitments[chosen.depth - 1] * codewords.shape[1] / SAMPLES
                commitments.append(a_sample / errors[-1].detach())
        found = torch.stack(errors)
        self.errors.lerp_(found.detach(), 1 - min(ERROR_DECAY, (1 + self.step) / (10 + self.step)))
        return {"alignment": found.log().mean(), "commitment": torch.stack(commitments).mean()}

    def _restoration(self, image: Tensor) -> dict[str, Tensor]:
        """Stage 2: restoration in one step, of tokens at one level a sample, or of a state that needs no tokens."""
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.step) % 2**63)
        levels = self._draw_levels(len(image), generator).to(self.device)
        noise = torch.randn(image.shape, generator=generator).to(self.device)
        noise = noise.contiguous(memory_format=torch.channels_last)
        jumps = int(self.config.jump_share * len(image))
        with self.autocast():
            coarse = self._coarse(image[jumps:], levels[jumps:])
            state = self.model.state(coarse, levels[jumps:], noise[jumps:])
        s = self.model.noise[levels]
        if jumps:
            s[:jumps] = LOWEST_JUMP + (HIGHEST_JUMP - LOWEST_JUMP) * torch.rand(jumps, generator=generator).to(s)
            known = least_ratios(jumps, HIDDEN_SHARE, generator).to(s)
            reached = self._jump(image[:jumps], noise[:jumps], s[:jumps], known)
            state, coarse = (torch.cat(pair) for pair in zip(reached, (state, coarse), strict=True))
        with self.autocast():
            restored = self.model.denoise(state, coarse, s)
        scale = self.model.denoiser.scale(s)
        terms = {
            "squared": oscar_terms.squared(restored, image, scale),
            "gradient": oscar_terms.gradient(restored, image, scale),
            "pixel": oscar_terms.pixel(restored, image, scale),
            "cosine": oscar_terms.cosine(restored, image),
        }
        if self.adversarial:
            self._adversary_step(image, coarse.detach(), restored.detach(), scale)
            with self.autocast(), torch.set_grad_enabled(self.config.adversarial_gradient):
                terms["adversarial"] = -self.discriminator(restored, coarse.detach(), scale).float().mean()
        return terms

    def _coarse(self, image: Tensor, levels: Tensor) -> Tensor:
        """Coarse images of frozen tokens, each at its level."""
        hyper, out = self.model.hyper, torch.empty_like(image)
        with torch.no_grad():
            features = hyper.features(image)
        for level in levels.unique().tolist():
            chosen, of = levels == level, hyper.config.levels[level]
            with torch.no_grad():
                codewords = hyper.quantise(features[of.stack][chosen], of.stack).codewords[of.depth - 1]
            out = out.index_put((chosen,), hyper.coarse(codewords, level).to(out.dtype))
        return out

    @torch.no_grad()
    def _jump(self, image: Tensor, noise: Tensor, s: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """States at noise fractions s (B,) as a channel coder conveys them, and the filter's estimate of the picture.

        known: ratios (B,) of power to noise below which frequencies are not conveyed.
        """
        fraction, model_filter = s.view(-1, 1, 1, 1), self.model.denoiser.filter
        state = model_filter.hide((1 - fraction) * image + fraction * noise, s, known)
        return state, model_filter(state, s)

    def _adversary_step(self, image: Tensor, coarse: Tensor, restored: Tensor, scale: Tensor) -> None:
        """One step of the discriminator."""
        with self.autocast():
            scores = self.discriminator(
                torch.cat([image, restored]), torch.cat([coarse, coarse]), torch.cat([scale, scale])
            )
        real, fake = scores.float().chunk(2)
        self.discriminator_optimiser.zero_grad(set_to_none=True)
        hinge_discriminator(real, fake).backward()  # type: ignore[no-untyped-call]
        self.discriminator_optimiser.step()

    def _draw_levels(self, count: int, generator: torch.Generator) -> Tensor:
        shares = self.config.level_shares or (1.0,) * len(self.errors)
        return torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator)

    def after_step(self) -> None:
        """Move the codebooks; at the end of stage 1, settle the noise levels."""
        if self.restoring:
            return
        answers = ((x, i) for coded in self._coded for x, i in zip(coded.inputs, coded.indices, strict=True))
        for codebook, embedding, (inputs, indices) in zip(self.codebooks, self._embeddings(), answers, strict=True):
            points = inputs.movedim(1, -1).flatten(0, 2)
            codebook.update(embedding.data, points, indices.flatten(), seed=self.step)
        self.model.set_noise(self.errors)

    def _embeddings(self) -> list[Tensor]:
        """The codebooks, stack by stack."""
        return [quantiser.embedding for stack in self.model.hyper.quantisers for quantiser in stack]

    def extra_state(self) -> dict[str, Any]:
        return {
            "codebooks": [{"count": one.count, "sum": one.sum} for one in self.codebooks],
            "errors": self.errors,
            "discriminator": self.discriminator.state_dict(),
            "discriminator_optimiser": self.discriminator_optimiser.state_dict(),
        }

    def restore_extra(self, state: dict[str, Any]) -> None:
        for codebook, saved in zip(self.codebooks, state["codebooks"], strict=True):
            codebook.count, codebook.sum = saved["count"], saved["sum"]
        self.errors = state["errors"]
        self.discriminator.load_state_dict(state["discriminator"])
        self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])

    def new_model(self) -> nn.Module:
        return Oscar(self.config.model)

    def networks(self, config: OscarTraining) -> object:
        return (config.model, config.discriminator)

    @torch.no_grad()
    def psnr(self, pictures: list[np.ndarray]) -> list[tuple[float, float]]:
        """Mean PSNR in dB of coarse and of restored centre crops by the averaged model, a pair for each level."""
        model, crop = self.averaged_model(), self.config.crop
        scores = np.zeros((len(self.errors), 2))
        for number, picture in enumerate(pictures):
            top, left = (picture.shape[0] - crop) // 2, (picture.shape[1] - crop) // 2
            square = picture[top : top + crop, left : left + crop] / np.float32(127.5) - 1
            image = torch.from_numpy(square).permute(2, 0, 1)[None].to(self.device)
            noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(number)).to(self.device)
            for level in range(len(scores)):
                with self.autocast():
                    coarse = model.hyper.decode(model.hyper.encode(image, level), level)
                    restored = model.restore(coarse, torch.tensor([level], device=self.device), noise)
                for column, one in enumerate((coarse, restored)):
                    scores[level, column] -= 10 * math.log10(float((one.clamp(-1, 1) - image).square().mean()) / 4)
        return [(float(a), float(b)) for a, b in scores / len(pictures)]

    def validate(self, pictures: list[np.ndarray]) -> str:
        rows = zip(self.model.noise.tolist(), self.psnr(pictures), strict=True)
        return "noise level: coarse and restored PSNR in dB: " + ", ".join(
            f"{noise:.2f}: {coarse:.2f} {restored:.2f}" for noise, (coarse, restored) in rows
        )
