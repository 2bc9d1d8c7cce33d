"""The loss terms of CoD, named and unweighted; weights are applied once, by `total`.

flow: |v - (x_1 - x_0)|^2 with logit-normal times (rectified flow); a share of the samples sits at t = 0, where the same
    term is the one-step reconstruction error (unified post-training).
reconstruction: |head(condition) - x|^2, the auxiliary picture read off the condition map.
commitment, codebook: |sg(z_q) - z|^2 and |z_q - sg(z)|^2.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.configuration import suggest
from codling.diffusion.path import interpolate, velocity
from codling.errors import ConfigError
from codling.models.cod import CoD

TERMS = ("flow", "reconstruction", "commitment", "codebook")


class ReconstructionHead(nn.Module):
    """Condition (B, width, h, w) -> state (B, channels, h patch, w patch); used in training only.

    `layers` 1x1 convolutions; the published head has 3. A single one teaches a small codec faster.
    """

    def __init__(self, width: int, *, channels: int, patch: int, layers: int):
        super().__init__()
        self.patch = patch
        hidden = [layer for _ in range(layers - 1) for layer in (nn.Conv2d(width, width, 1), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Conv2d(width, channels * patch**2, 1))

    def forward(self, condition: Tensor) -> Tensor:
        return F.pixel_shuffle(self.layers(condition), self.patch)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step: times (B,), starting noise like the states, and who loses the condition (B,)."""

    t: Tensor
    noise: Tensor
    null: Tensor

    @classmethod
    def make(
        cls,
        shape: torch.Size,
        *,
        null_condition: float,
        one_step_share: float,
        seed: int,
        step: int,
        device: torch.device,
    ) -> "Draws":
        """A pure function of seed and step, on every device: drawn on the CPU."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        t = torch.randn(shape[0], generator=generator).sigmoid()
        t = torch.where(torch.rand(shape[0], generator=generator) < one_step_share, 0.0, t)
        noise = torch.randn(shape, generator=generator)
        null = torch.rand(shape[0], generator=generator) < null_condition
        return cls(t.to(device), noise.to(device), null.to(device))


@dataclass(frozen=True)
class StepResult:
    """The terms of a step, and what the codebook learner needs: features (B, D, h, w), indices, the rows that count."""

    terms: dict[str, Tensor]
    features: Tensor
    indices: Tensor
    counted: Tensor


def cod_step(
    model: CoD,
    head: ReconstructionHead,
    image: Tensor,
    state: Tensor,
    draws: Draws,
    *,
    quantise: bool,
    denoise: bool,
    encode: bool,
) -> StepResult:
    """All terms for a batch of images (B, 3, H, W) and their states (the images themselves in pixel space).

    Without `quantise` the decoder sees the features themselves; without `denoise` the transformer is not run and the
    flow term is zero; without `encode` no gradient reaches the encoder. They make the stages of a run, see
    `TrainingConfig`.
    """
    null = draws.null[:, None, None, None]
    # "Nothing known" is the image whose pixels are all -1, as in the published training.
    with torch.set_grad_enabled(encode and torch.is_grad_enabled()):
        features = model.condition_codec.encoder(torch.where(null, -1.0, image))
    quantised = model.condition_codec.quantiser(features)
    condition = model.condition_codec.decoder(quantised.codewords if quantise else features)

    flow = condition.new_zeros(())
    if denoise:
        v = model.velocity(interpolate(draws.noise, state, draws.t), draws.t, condition)
        flow = F.mse_loss(v.float(), velocity(draws.noise, state))
    reconstruction = head(condition).float() - state
    return StepResult(
        terms={
            "flow": flow,
            "reconstruction": (reconstruction.square() * ~null).mean(),
            "commitment": quantised.commitment,
            "codebook": quantised.codebook if encode else quantised.codebook.detach(),
        },
        features=features.detach().float(),
        indices=quantised.indices,
        counted=~draws.null,
    )


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises ConfigError unless exactly the known terms are weighted."""
    for name in weights:
        if name not in TERMS:
            raise ConfigError(f"loss weights: unknown term {name!r}{suggest(name, TERMS)}")
    if missing := set(TERMS) - set(weights):
        raise ConfigError(f"loss weights: no weight for {', '.join(sorted(missing))}; write 0 to leave a term out")


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
