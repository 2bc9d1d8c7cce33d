"""The loss terms of CoD, named and unweighted; weights are applied once, by `total`.

flow: |v - (x_1 - x_0)|^2 with logit-normal times (rectified flow); a share of the samples may sit at t = 0, where the
    same term is the one-step reconstruction error (one reading of unified post-training).
finished: |finish(x_0 + v(x_0, 0)) - x_1|^2, where the finisher learns; sliced: how far its textures are from the true
    ones, see `sliced`; lpips, lpips_alex, dists: distances from it, see `perceptual`.
one_step: |x_0 + v(x_0, 0) - x_1|^2, a second pass of the same noise at t = 0 (the other reading, that of the published
    code).
reconstruction: |head(condition) - x_1|^2, the auxiliary state read off the condition map.
alignment: 1 - cos(projected tokens of a transformer block, teacher) at every token (REPA, Yu et al. 2025).
codec_alignment: 1 - cos(projected condition map, teacher).
commitment, codebook: |sg(z_q) - z|^2 and |z_q - sg(z)|^2.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.configuration import suggest
from codling.diffusion.path import interpolate, velocity
from codling.errors import ConfigError
from codling.models.cod import CoD
from codling.training.alignment import Projection, misalignment
from codling.training.draws import noise_like, step_generator
from codling.training.perceptual import Distance
from codling.training.sliced import sliced

TERMS = (
    "flow", "finished", "sliced", "lpips", "lpips_alex", "dists", "one_step", "reconstruction", "alignment",
    "codec_alignment", "commitment", "codebook",
)  # fmt: skip
ALWAYS = ("flow", "reconstruction", "commitment", "codebook")


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


class Heads(nn.Module):
    """The networks that only training needs. teacher_width: channels of the teacher's features, None without one."""

    def __init__(self, *, width: int, channels: int, patch: int, layers: int, teacher_width: int | None):
        super().__init__()
        self.reconstruction = ReconstructionHead(width, channels=channels, patch=patch, layers=layers)
        self.tokens = None if teacher_width is None else Projection(width, teacher_width)
        self.condition = None if teacher_width is None else Projection(width, teacher_width)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step: times (B,), starting noise like the states, and who loses the condition (B,);
    directions: of the distance between textures."""

    t: Tensor
    noise: Tensor
    null: Tensor
    directions: torch.Generator

    @classmethod
    def make(
        cls,
        state: Tensor,
        places: Sequence[int],
        *,
        batch: int,
        null_condition: float,
        one_step_share: float,
        seed: int,
        step: int,
    ) -> "Draws":
        """For states (B, C, H, W) at `places` of a batch: a pure function of seed, step and place."""
        generator = step_generator(seed, step)
        t = torch.randn(batch, generator=generator).sigmoid()
        t = torch.where(torch.rand(batch, generator=generator) < one_step_share, 0.0, t)
        null = torch.rand(batch, generator=generator) < null_condition
        rows, device = list(places), state.device
        return cls(
            t[rows].to(device), noise_like(state, places, seed=seed, step=step), null[rows].to(device),
            step_generator(seed + 1, step),
        )  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """What a step computes: the stages of a run differ in it, see `TrainingConfig`.

    Without `quantise` the decoder sees the features themselves; without `denoise` the transformer is not run and its
    terms are zero; without `encode` no gradient reaches the encoder. one_step_pass: with the term `one_step`.
    align_block: number of trunk blocks after which tokens are aligned to the teacher's features.
    """

    quantise: bool = True
    denoise: bool = True
    encode: bool = True
    one_step_pass: bool = False
    align_block: int = 0


@dataclass(frozen=True)
class StepResult:
    """The terms of a step, and what the codebook learner needs: features (B, D, h, w), indices, the rows that count."""

    terms: dict[str, Tensor]
    features: Tensor
    indices: Tensor
    counted: Tensor


def cod_step(
    model: CoD,
    heads: Heads,
    image: Tensor,
    state: Tensor,
    draws: Draws,
    objective: Objective,
    *,
    teacher_features: Tensor | None = None,
) -> StepResult:
    """All terms for a batch of images (B, 3, H, W) and their states (the images themselves in pixel space).

    teacher_features: (B, teacher width, H / 16, W / 16), or None without a teacher.
    """
    null = draws.null[:, None, None, None]
    learned = model.config.null == "learned"
    with torch.set_grad_enabled(objective.encode and torch.is_grad_enabled()):
        features = model.condition_codec.encoder(image if learned else torch.where(null, -1.0, image))
    quantised = model.condition_codec.quantiser(features)
    condition = model.condition_codec.decoder(quantised.codewords if objective.quantise else features)
    if learned:
        condition = torch.where(null, model.null.view(1, -1, 1, 1).to(condition.dtype), condition)
    reconstruction = heads.reconstruction(condition).float() - state
    zero = condition.new_zeros((), dtype=torch.float32)
    terms = {
        "flow": zero,
        "reconstruction": (reconstruction.square() * ~null).mean(),
        "commitment": quantised.commitment,
        "codebook": quantised.codebook if objective.encode else quantised.codebook.detach(),
    }
    if objective.denoise:
        x = interpolate(draws.noise, state, draws.t)
        if teacher_features is None:
            v = model.velocity(x, draws.t, condition)
        else:
            v, tokens = model.velocity_and_tokens(x, draws.t, condition, block=objective.align_block)
        terms["flow"] = F.mse_loss(v.float(), velocity(draws.noise, state))
    if objective.one_step_pass:
        terms["one_step"] = zero
        if objective.denoise:
            decoded = draws.noise + model.velocity(draws.noise, torch.zeros_like(draws.t), condition).float()
            terms["one_step"] = F.mse_loss(decoded, state)
    if teacher_features is not None:
        assert heads.tokens is not None and heads.condition is not None
        of_codec = misalignment(heads.condition(condition), teacher_features)
        terms["codec_alignment"] = (of_codec * ~draws.null).mean()
        terms["alignment"] = zero
        if objective.denoise:
            rows = state.shape[-2] // model.transformer.config.patch
            token_map = tokens.transpose(1, 2).unflatten(2, (rows, -1))
            token_map = F.adaptive_avg_pool2d(token_map, condition.shape[-2:])
            terms["alignment"] = misalignment(heads.tokens(token_map), teacher_features).mean()
    return StepResult(terms, features.detach().float(), quantised.indices, ~draws.null)


def finisher_step(model: CoD, image: Tensor, draws: Draws, perceptual: Mapping[str, Distance]) -> StepResult:
    """The terms of the finisher for images (B, 3, H, W), with these named distances: all else of the model stays."""
    with torch.no_grad():
        features = model.condition_codec.encoder(image)
        quantised = model.condition_codec.quantiser(features)
        condition = model.condition_codec.decoder(quantised.codewords)
        one_step = draws.noise + model.velocity(draws.noise, torch.zeros_like(draws.t), condition).float()
    made = model.finish(one_step, draws.noise, condition)
    with torch.autocast(image.device.type, enabled=False):
        made = made.float()
        terms = {"finished": F.mse_loss(made, image), "sliced": sliced(made, image, draws.directions)}
        terms |= {name: distance(made, image) for name, distance in perceptual.items()}
    return StepResult(terms, features.float(), quantised.indices, ~draws.null)


def check_weights(weights: Mapping[str, float], used: Collection[str]) -> None:
    """Raises ConfigError on weights of unknown terms, and unless every term in use has one."""
    for name in weights:
        if name not in TERMS:
            raise ConfigError(f"loss weights: unknown term {name!r}{suggest(name, TERMS)}")
    if missing := set(used) - set(weights):
        raise ConfigError(f"loss weights: no weight for {', '.join(sorted(missing))}; write 0 to leave a term out")


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
