"""Training of OSCAR: first the hyper-encoders of all rates, then the denoiser that restores what they keep."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from codling.errors import ConfigError
from codling.models.discriminator import Discriminator, hinge_discriminator
from codling.models.hyper_codec import SAMPLES, Coded
from codling.models.oscar import Oscar
from codling.pictures import to_image_array
from codling.training import oscar_terms
from codling.training.averages import CodebookAverage, WeightAverage
from codling.training.beginning import begin_denoiser
from codling.training.checkpoint import load_optimiser
from codling.training.decoded import Decoded, decoded_by
from codling.training.distillation import SampledTeacher
from codling.training.distribution import HIGHEST, LOWEST, DistributionMatching, Probe, load_estimate
from codling.training.draws import noise_like, spread, step_generator
from codling.training.engine import Engine
from codling.training.perceptual import PERCEPTUAL, load_perceptual
from codling.training.recipes import OscarTraining, oscar_weights
from codling.training.run import Run
from codling.training.sliced import sliced
from codling.training.validation import centre_squares, distances, fixed_noise
from codling.training.walks import Jumps

# Decay of the running mean of each level's error, from which its noise level is taken.
ERROR_DECAY = 0.99


class OscarRun(Run[OscarTraining]):
    """An OSCAR model, the running means of its codebooks and errors, and a discriminator with its own optimiser.

    Where their terms count: the networks of perceptual distances, and what matches distributions.
    """

    shape = ("hyper", "denoiser", "grain", "noise_share")

    def __init__(self, config: OscarTraining, device: torch.device):
        if set(config.weights) != set(oscar_weights()):
            raise ConfigError(f"training: weights must be of {sorted(oscar_weights())}, got {sorted(config.weights)}")
        torch.manual_seed(config.seed)
        model = Oscar(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.hyper.quantisers.requires_grad_(False)
        model.denoiser.requires_grad_(not config.freeze_denoiser)
        self.discriminator = Discriminator(config.discriminator)
        self.discriminator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.perceptual = load_perceptual([n for n in PERCEPTUAL if config.weights[n] > 0], device=device)
        self.matching: DistributionMatching | None = None
        if config.weights["distribution"] > 0:
            base = load_estimate(config.distribution_base, device=device)
            self.matching = DistributionMatching(
                base, name=config.distribution_base, learning_rate=config.fake_learning_rate
            )
        self.teacher: SampledTeacher | None = None
        if config.weights["sampled"] > 0:
            self.teacher = SampledTeacher.load(
                config.sampled_from, steps=config.sampled_steps, roughness=config.sampled_roughness, device=device
            )
        super().__init__(config, device, model, nn.Module())
        self.codebooks = [CodebookAverage(embedding) for embedding in self._embeddings()]
        self.errors = torch.ones(len(config.model.hyper.levels), device=device)
        # Even where none is trained on: the model is exported with their tables, and a wrong name is to be found now.
        self.jumps = Jumps.of(config.jump_as, device=device, linear=True)
        self.others: dict[str, tuple[Decoded, float]] = {}
        if config.jump_share:
            self.others[config.jump_as] = self.jumps, config.jump_share
        for name in config.finish_as if config.finish_share else ():
            self.others[name] = decoded_by(name, model, device=device), config.finish_share / len(config.finish_as)
        self._coded: list[Coded] = []
        self._restored: oscar_terms.Restored | None = None
        self._probe: Probe | None = None

    def _make_trainable(self, module: nn.Module) -> None:
        super()._make_trainable(module)
        self.judge: nn.Module = self.discriminator
        self.discriminator_optimiser = torch.optim.AdamW(
            self.discriminator.parameters(), lr=self.config.discriminator_learning_rate, betas=(0.5, 0.95)
        )
        if self.matching is not None:
            self.matching.distribute(self.engine)

    def distribute(self, engine: Engine) -> None:
        if engine.sharded:
            raise ConfigError("training: running means need whole codebooks in every process; use the strategy ddp")
        super().distribute(engine)
        self.judge = engine.wrap(self.discriminator)

    def compile(self) -> None:
        self.model.hyper.features = torch.compile(self.model.hyper.features)
        self.model.denoiser.correction = torch.compile(self.model.denoiser.correction)

    @property
    def restoring(self) -> bool:
        """Whether the denoiser learns, from tokens that stay as they are, or the tokens do."""
        return self.config.restore_from is not None and self.step >= self.config.restore_from

    @property
    def adversarial(self) -> bool:
        """Whether there is an adversary by now."""
        return self.restoring and self.config.weights["adversarial"] > 0 and self.step >= self.config.adversarial_from

    @property
    def phase(self) -> tuple[bool, bool]:
        return self.restoring, self.adversarial

    def prepare(self, pictures: Callable[[], list[np.ndarray]]) -> None:
        """Start from the pictures' principal components, and the prior's denoiser or else the pictures' spectrum."""
        if self.config.restore_from == 0:
            raise ConfigError(
                "training: restore_from=0 goes on from trained tokens, and there are none in this directory; train "
                "`oscar-s`, which has both stages, set restore_from, or name a model to begin from (--from)"
            )
        images, grid = [], self.config.model.grid
        for picture in pictures():
            height, width = (side // grid * grid for side in picture.shape[:2])
            if height and width:
                images.append(torch.from_numpy(to_image_array(picture[:height, :width]))[None])
        if not images:
            raise ConfigError(f"training: no picture of at least {grid} px a side to begin from; add larger ones")
        self.model.hyper.fit_shortcuts(images)
        begin_denoiser(self.model.denoiser, self.config.prior, [image[0] for image in images])
        self.average = WeightAverage(self.model, self.config.average)

    def loss(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        terms = self._restoration(image) if self.restoring else self._alignment(image)
        return torch.stack([self.config.weights[name] * term for name, term in terms.items()]).sum(), terms

    def train_step(self, image: Tensor) -> dict[str, float]:
        """A step of the model, then one of the discriminator and of the fake distribution where there are such."""
        image = image.to(self.device).to(memory_format=torch.channels_last)
        loss, terms = self.module(image)
        self.descend(loss, self.optimiser)
        if self.adversarial:
            terms["discriminator"] = self._judge(image)
        if self.restoring and self.matching is not None:
            assert self._restored is not None and self._probe is not None
            terms["fake"] = self.matching.learn(self._restored.image, self._probe)
        self.finish_step()
        return {name: float(term) for name, term in terms.items()}

    def _alignment(self, image: Tensor) -> dict[str, Tensor]:
        """Stage 1: all levels' coarse images against the image.

        Each level's loss counts in units of its own error, commitment as well: in units of pixels it would be too weak
        beside the logarithm, and features would outgrow their codewords. The error is that of the whole batch, as
        a mean of processes' own logarithms would have another gradient than the logarithm of their mean.
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
                commitments.append(a_sample)
        found = torch.stack(errors)
        everywhere = self.engine.gather(found.detach()[None]).mean(0)
        self.errors.lerp_(everywhere, 1 - min(ERROR_DECAY, (1 + self.step) / (10 + self.step)))
        # In one process `found / everywhere` is 1, and its gradient that of the logarithm.
        alignment = everywhere.log() + found / everywhere - 1
        return {"alignment": alignment.mean(), "commitment": (torch.stack(commitments) / everywhere).mean()}

    def _restoration(self, image: Tensor) -> dict[str, Tensor]:
        """Stage 2: restoration in one step, of tokens at one level a sample, or of what a channel coder tells."""
        config, places = self.config, list(self.places[: len(image)])
        generator = step_generator(config.seed, self.step)
        shares = torch.tensor(config.level_shares or (1.0,) * len(self.errors))
        levels = torch.multinomial(shares, config.batch, replacement=True, generator=generator)[places].to(self.device)
        noise = noise_like(image, places, seed=config.seed, step=self.step)
        s, state, coarse = self.model.noise[levels], torch.empty_like(image), torch.empty_like(image)
        told = torch.zeros(len(image), dtype=torch.bool, device=self.device)
        numbered, begin = spread(config.batch, seed=config.seed, step=self.step), 0.0
        for other, share in self.others.values():
            end = begin + share
            chosen = torch.tensor([begin <= numbered[place] < end for place in places], device=self.device)
            begin = end
            if not chosen.any():
                continue
            numbers = [(config.seed, self.step, places[row]) for row in chosen.nonzero().flatten().tolist()]
            with self.autocast():
                state[chosen], coarse[chosen], fractions = other.draw(image[chosen], numbers)
            s, told = s.index_put((chosen,), fractions), told | chosen
        with self.autocast():
            # One process of many can have no tokens.
            if not told.all():
                tokens = self._coarse(image[~told], levels[~told])
                # Samples are made of coarse images: these would move to where they are easily sampled from.
                tokens = tokens if self.teacher is None else tokens.detach()
                coarse = coarse.index_put((~told,), tokens.to(coarse.dtype))
                state = state.index_put((~told,), self.model.noisy(tokens, s[~told], noise[~told]).to(state.dtype))
            restored = self.model.restore(state, coarse, s)
        self._restored = oscar_terms.Restored(restored, coarse.detach(), self.model.denoiser.scale(s))
        terms = oscar_terms.distances(self._restored, image)
        if self.teacher is not None:
            with self.autocast():
                sample = self.teacher.sample(state.detach(), s)
            terms["sampled"] = oscar_terms.squared(restored, sample, self._restored.scale)
        if config.weights["sliced"] > 0:
            terms["sliced"] = sliced(restored.float(), image, step_generator(config.seed + 1, self.step))
        terms |= {name: distance(restored, image) for name, distance in self.perceptual.items()}
        if self.matching is not None:
            level = (LOWEST + (HIGHEST - LOWEST) * torch.rand(config.batch, generator=generator))[places]
            # The places after the batch's own have noise that no state has seen.
            beyond = [config.batch + place for place in places]
            fresh = noise_like(image, beyond, seed=config.seed, step=self.step)
            self._probe = Probe(level.to(self.device), fresh, image)
            terms["distribution"] = self.matching.term(restored, self._probe)
        if self.adversarial:
            with self.autocast(), torch.set_grad_enabled(config.adversarial_gradient):
                terms["adversarial"] = -self._frozen_judgement(self._restored).float().mean()
        return terms

    def _frozen_judgement(self, restored: oscar_terms.Restored) -> Tensor:
        """The discriminator's scores, with a gradient of the images but none of its own weights."""
        weights = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        scores: Tensor = functional_call(self.discriminator, weights, restored.parts)
        return scores

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

    def _judge(self, image: Tensor) -> Tensor:
        """One step of the discriminator on the restored pictures of this step and the true ones; returns its loss."""
        assert self._restored is not None
        fake, coarse, scale = (part.detach() for part in self._restored.parts)
        with self.autocast():
            scores = self.judge(torch.cat([image, fake]), torch.cat([coarse, coarse]), torch.cat([scale, scale]))
        loss = hinge_discriminator(*scores.float().chunk(2))
        self.discriminator_optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.discriminator_optimiser.step()
        return loss.detach()

    def after_step(self) -> None:
        """In stage 1, move the codebooks and say which noise each level's error is like."""
        if self.restoring:
            return
        gather = self.engine.gather
        answers = ((x, i) for coded in self._coded for x, i in zip(coded.inputs, coded.indices, strict=True))
        for codebook, embedding, (inputs, indices) in zip(self.codebooks, self._embeddings(), answers, strict=True):
            points = gather(inputs.movedim(1, -1).contiguous()).flatten(0, 2)
            codebook.update(embedding.data, points, gather(indices).flatten(), seed=self.step)
        self.model.noise.copy_(self.model.noise_of(self.errors))

    def _embeddings(self) -> list[Tensor]:
        """The codebooks, stack by stack."""
        return [quantiser.embedding for stack in self.model.hyper.quantisers for quantiser in stack]

    def extra_state(self) -> dict[str, Any]:
        return {
            "codebooks": [{"count": one.count, "sum": one.sum} for one in self.codebooks],
            "errors": self.errors,
            "discriminator": self.discriminator.state_dict(),
            "discriminator_optimiser": self.discriminator_optimiser.state_dict(),
            **({} if self.matching is None else {"matching": self.matching.state()}),
        }

    def restore_extra(self, state: dict[str, Any]) -> None:
        for codebook, saved in zip(self.codebooks, state["codebooks"], strict=True):
            codebook.count, codebook.sum = saved["count"], saved["sum"]
        self.errors = state["errors"]
        self.discriminator.load_state_dict(state["discriminator"])

    def restore_optimisers(self, state: dict[str, Any]) -> None:
        load_optimiser(self.discriminator_optimiser, state["discriminator_optimiser"])
        # A term that counts from here on only begins with the base itself as the fake.
        if self.matching is not None and "matching" in state:
            self.matching.restore(state["matching"])

    def begin(self, weights: Mapping[str, Tensor], origin: str) -> None:
        super().begin(weights, origin)
        config, model = self.config, self.model
        strides = (stack.stride for stack in config.model.hyper.stacks for _ in range(stack.depth))
        for codebook, embedding, stride in zip(self.codebooks, self._embeddings(), strides, strict=True):
            codebook.begin(embedding, config.batch * (config.crop // stride) ** 2)
        # The errors that the noise levels were taken from.
        self.errors = model.error_of(model.noise)

    def new_model(self) -> nn.Module:
        return Oscar(self.config.model)

    def networks(self, config: OscarTraining) -> object:
        return super().networks(config), config.discriminator

    @torch.no_grad()
    def validate(self, pictures: list[np.ndarray]) -> dict[str, float]:
        """PSNR in dB and SWD of centre squares, a level each: coarse in stage 1, restored in stage 2; then told."""
        return self.examine(pictures, 0)[0]

    @torch.no_grad()
    def examine(self, pictures: list[np.ndarray], rows: int) -> tuple[dict[str, float], Sequence[Tensor]]:
        """The scores, and what they are of: the pictures, and what comes back at each level."""
        images = centre_squares(pictures, self.config.crop, device=self.device)
        scores: dict[str, float] = {}
        model = self.averaged_model()
        decoded = self._decoded(model, images)
        for level, row in enumerate(model.levels):
            psnr, swd = distances(images, decoded[level])
            scores |= {f"time of level {level}": row.time, f"PSNR at level {level}": psnr, f"SWD at level {level}": swd}
        for name, (other, _) in self.others.items() if self.restoring else ():
            with self.autocast():
                drawn = other.draw(images, [(self.config.seed, number) for number in range(len(images))])
                restored = [model.restore(*each) for each in zip(*(part.split(1) for part in drawn), strict=True)]
            found = distances(images, torch.cat(restored).float().clamp(-1, 1))
            scores[f"PSNR told as by {name}"], scores[f"SWD told as by {name}"] = found
        return scores, [column[:rows] for column in (images, *decoded)]

    def _decoded(self, model: Oscar, images: Tensor) -> list[Tensor]:
        """Images (n, 3, H, W) through a model at every level."""
        noise, out = fixed_noise(images.shape, device=self.device), [list[Tensor]() for _ in model.levels]
        for image, n in zip(images.split(1), noise.split(1), strict=True):
            with self.autocast():
                for level, indices in enumerate(model.hyper.encode(image, range(len(out)))):
                    coarse = model.hyper.decode(indices, level)
                    s = model.noise[level : level + 1]
                    state = model.noisy(coarse, s, n)
                    out[level].append(model.restore(state, coarse, s) if self.restoring else coarse)
        return [torch.cat(rows).float().clamp(-1, 1) for rows in out]
