"""Training of CoD: condition codec, codebook and diffusion transformer together, in pixel or latent space."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from codling.diffusion.grid import uniform_grid
from codling.diffusion.path import data_from_velocity
from codling.diffusion.samplers import sampler
from codling.errors import ConfigError
from codling.models.autoencoder import Autoencoder, PixelSpace, StableDiffusionVAE
from codling.models.cod import CoD
from codling.pictures import to_image_array
from codling.training.alignment import load_teacher
from codling.training.averages import CodebookAverage, WeightAverage
from codling.training.beginning import begin_denoiser
from codling.training.checkpoint import gathered
from codling.training.engine import Engine
from codling.training.perceptual import PERCEPTUAL, load_perceptual
from codling.training.recipes import TrainingConfig
from codling.training.run import Run
from codling.training.terms import (
    ALWAYS,
    Draws,
    Heads,
    Objective,
    StepResult,
    check_weights,
    cod_step,
    finisher_step,
    total,
)
from codling.training.validation import (
    CHUNK,
    Estimate,
    centre_squares,
    denoising_gain,
    distances,
    fixed_noise,
    linear_filter,
)


class CoDRun(Run[TrainingConfig]):
    """A CoD model with its heads, its teacher, its autoencoder and the running means of its codebook; where their terms
    count, the networks of perceptual distances."""

    shape = ("condition", "transformer", "convolution", "finisher", "finisher_noise", "sigma_data", "null", "space")

    def __init__(self, config: TrainingConfig, device: torch.device):
        self.autoencoder = load_autoencoder(config, device)
        self.teacher = load_teacher(config.teacher, device=device)
        looked_at = [name for name in PERCEPTUAL if config.finish and config.weights.get(name, 0) > 0]
        self.perceptual = load_perceptual(looked_at, device=device)
        used = ["finished", "sliced"] if config.finish else [*ALWAYS]
        used += ["one_step"] if config.one_step_pass else []
        used += ["alignment", "codec_alignment"] if self.teacher else []
        check_weights(config.weights, used)
        torch.manual_seed(config.seed)
        model = CoD(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.teacher:
            check_alignable(config)
        heads = self._new_heads(config)
        if config.codebook == "average":
            model.condition_codec.quantiser.embedding.requires_grad_(False)
        super().__init__(config, device, model, heads.to(device))
        self.codebook = CodebookAverage(self.embedding)
        self._result: StepResult | None = None

    def _new_heads(self, config: TrainingConfig) -> Heads:
        model = config.model
        return Heads(
            width=model.condition.decoder_width, channels=model.channels, patch=model.condition_patch,
            layers=config.reconstruction_layers, teacher_width=self.teacher.width if self.teacher else None,
        )  # fmt: skip

    def distribute(self, engine: Engine) -> None:
        super().distribute(engine)
        if engine.sharded and self.config.codebook == "average":
            raise ConfigError("training: running means need the whole codebook in every process; set codebook=gradient")

    def compile(self) -> None:
        # On a CPU the library's own convolutions are faster than compiled ones.
        if self.device.type != "cpu":
            for module in (self.model.condition_codec.encoder, self.model.condition_codec.decoder):
                module.compile()
        if self.config.model.transformer is None:
            self.model.denoiser.correction = torch.compile(self.model.denoiser.correction)
            return
        transformer = self.model.transformer
        transformer.output_and_tokens = torch.compile(transformer.output_and_tokens)

    def prepare(self, pictures: Callable[[], list[np.ndarray]]) -> None:
        """Convolutions begin as their priors, or else with the pictures' spectrum.

        Raises ConfigError if the run leaves the encoder as it is, which without a beginning is untrained.
        """
        config = self.config
        frozen = "finish=true" if config.finish else "freeze_encoder_from=0"
        if config.finish or config.freeze_encoder_from == 0:
            raise ConfigError(
                f"training: {frozen} goes on from a trained model, and there is none in this directory; train a recipe "
                "with all stages, like `cod-xs`, or name a model to begin from (--from)"
            )
        if config.model.convolution is None and config.model.finisher is None:
            return
        images = [torch.from_numpy(to_image_array(picture)) for picture in pictures()]
        if config.model.convolution is not None:
            begin_denoiser(self.model.denoiser, config.prior, images)
        if config.model.finisher is not None:
            begin_denoiser(self.model.finisher, config.finisher_prior, images)
        self.average = WeightAverage(self.model, self.config.average)

    @property
    def embedding(self) -> Tensor:
        embedding: Tensor = self.model.condition_codec.quantiser.embedding
        return embedding

    @property
    def objective(self) -> Objective:
        """What the coming step computes."""
        config, step = self.config, self.step
        return Objective(
            quantise=step >= config.quantise_from,
            denoise=step >= config.denoise_from,
            encode=not config.finish and (config.freeze_encoder_from is None or step < config.freeze_encoder_from),
            one_step_pass=config.one_step_pass,
            align_block=config.align_block,
        )

    @property
    def phase(self) -> Objective:
        return self.objective

    def loss(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        with torch.no_grad(), self.autocast():
            state = self.autoencoder.encode(image).float()
        draws = Draws.make(
            state,
            self.places[: len(image)],
            batch=config.batch,
            null_condition=config.null_condition,
            one_step_share=config.one_step_share,
            seed=config.seed,
            step=self.step,
        )
        with self.autocast():
            if config.finish:
                result = finisher_step(self.model, image, draws, self.perceptual)
            else:
                taught = self._taught(image)
                result = cod_step(self.model, self.head, image, state, draws, self.objective, teacher_features=taught)
        self._result = result
        return total(result.terms, config.weights), result.terms

    def _taught(self, image: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        rows, columns = (side // 16 for side in image.shape[-2:])
        return self.teacher.features(image, rows=rows, columns=columns)

    def after_step(self) -> None:
        """Move the codebook."""
        result, objective = self._result, self.objective
        assert result is not None
        if self.config.codebook == "average" and objective.encode and objective.quantise:
            gather = self.engine.gather
            counted = gather(result.counted)
            features = gather(result.features.movedim(1, -1).contiguous())[counted].flatten(0, 2)
            indices = gather(result.indices)[counted].flatten()
            self.codebook.update(self.embedding.data, features, indices, seed=self.step)

    def extra_state(self) -> dict[str, dict[str, Tensor]]:
        return {"codebook": {"count": self.codebook.count, "sum": self.codebook.sum}}

    def restore_extra(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.codebook.count, self.codebook.sum = state["codebook"]["count"], state["codebook"]["sum"]

    def begin(self, weights: Mapping[str, Tensor], origin: str) -> None:
        super().begin(weights, origin)
        if self.config.codebook == "average":
            config = self.config
            self.codebook.begin(self.embedding, config.batch * (config.crop // config.model.condition.stride) ** 2)

    def new_model(self) -> nn.Module:
        return CoD(self.config.model)

    @torch.no_grad()
    def validate(self, pictures: list[np.ndarray]) -> dict[str, float]:
        """PSNR and SWD by number of steps, and the denoising gain over the linear filter by noise fraction.

        The gain is measured with the condition and with the null condition, in pixel space.
        """
        config, model = self.config, self.averaged_model()
        images = centre_squares(pictures, config.crop, device=self.device)
        condition = self._conditions(model, images)
        scores = {"reconstruction PSNR": distances(images, self._read_off(condition))[0]}
        if self.step < config.denoise_from:
            return scores
        for steps in config.validation_steps:
            psnr, texture = distances(images, self._decoded(model, condition, images, steps))
            scores |= {f"PSNR at {steps} steps": psnr, f"SWD at {steps} steps": texture}
        if config.finish:
            psnr, texture = distances(images, self._finished(model, condition, images))
            scores |= {"PSNR finished": psnr, "SWD finished": texture}
        if config.model.space != "pixel":
            return scores
        null = model.null_condition(height=config.crop, width=config.crop)
        nulls = [null.expand(len(c), -1, -1, -1) for c in condition]
        reference = linear_filter().to(self.device)
        for level in config.validation_noise:
            for name, conditions in (("gain", condition), ("null gain", nulls)):
                estimate = self._estimate(model, conditions)
                scores[f"{name} at {level:g}"] = denoising_gain(estimate, reference, images, level)
        return scores

    @torch.no_grad()
    def samples(self, pictures: list[np.ndarray]) -> Sequence[Tensor]:
        """The pictures, what is read off their condition, and what is grown from it at each number of steps."""
        config, model = self.config, self.averaged_model()
        images = centre_squares(pictures, config.crop, device=self.device)
        condition = self._conditions(model, images)
        columns = [images, self._read_off(condition)]
        if self.step >= config.denoise_from:
            columns += [self._decoded(model, condition, images, steps) for steps in config.validation_steps]
        if config.finish:
            columns += [self._finished(model, condition, images)]
        return columns

    def _conditions(self, model: CoD, images: Tensor) -> list[Tensor]:
        """Condition maps, in pieces of `CHUNK` pictures."""
        codec = model.condition_codec
        with self.autocast():
            return [codec.decode(codec.encode(piece)) for piece in images.split(CHUNK)]

    def _read_off(self, condition: list[Tensor]) -> Tensor:
        """Pictures (n, 3, H, W) of the reconstruction head."""
        heads = self._new_heads(self.config).to(self.device)
        heads.load_state_dict(gathered(self.head.state_dict()))
        with self.autocast():
            return torch.cat([self.autoencoder.decode(heads.reconstruction(c).float()).float() for c in condition])

    def _decoded(self, model: CoD, condition: list[Tensor], images: Tensor, steps: int) -> Tensor:
        """Pictures (n, 3, H, W) grown without guidance from fixed noise."""
        config, pieces = model.config, []
        grid = uniform_grid(steps, last_step=config.last_step)
        for c, start in zip(condition, self._starts(model, images), strict=True):

            def velocity(x: Tensor, t: Tensor, c: Tensor = c) -> Tensor:
                with self.autocast():
                    return model.velocity(x, t, c).float()

            pieces.append(self.autoencoder.decode(sampler(config.sampler)(velocity, start, grid)))
        return torch.cat(pieces)

    def _finished(self, model: CoD, condition: list[Tensor], images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) of one step from the same noise, finished."""
        one_step = self._decoded(model, condition, images, 1).split(CHUNK)
        with self.autocast():
            pieces = zip(one_step, self._starts(model, images), condition, strict=True)
            return torch.cat([model.finish(*piece) for piece in pieces])

    def _starts(self, model: CoD, images: Tensor) -> tuple[Tensor, ...]:
        """Fixed noise for pictures, in pieces of `CHUNK`."""
        sides = (side // model.config.state_stride for side in images.shape[-2:])
        shape = torch.Size((len(images), model.config.channels, *sides))
        return fixed_noise(shape, device=self.device).split(CHUNK)

    def _estimate(self, model: CoD, condition: list[Tensor]) -> Estimate:
        """The model as a denoiser of states at a noise fraction, which is 1 - t, for one piece after the other."""
        pieces = iter(condition)

        def estimate(x: Tensor, noise: Tensor) -> Tensor:
            with self.autocast():
                v = model.velocity(x, 1 - noise, next(pieces)).float()
            return data_from_velocity(x, v, 1 - noise)

        return estimate


def check_alignable(config: TrainingConfig) -> None:
    """Raises ConfigError unless there are tokens to align to a teacher's features."""
    transformer = config.model.transformer
    if transformer is None:
        raise ConfigError(
            "training: a teacher aligns a transformer's tokens, and a convolution has none; set teacher=none"
        )
    if not 0 < config.align_block <= transformer.blocks:
        raise ConfigError(f"training: align_block must be 1 to {transformer.blocks}, got {config.align_block}")


def load_autoencoder(config: TrainingConfig, device: torch.device) -> Autoencoder:
    """The space that a configuration trains in. Raises ConfigError where its autoencoder is not named."""
    if config.model.space == "pixel":
        return PixelSpace()
    if not config.autoencoder:
        raise ConfigError(
            "training in latent space needs an autoencoder: set autoencoder=DIR, a directory with `config.json` and "
            "`diffusion_pytorch_model.safetensors` of stabilityai/sd-vae-ft-ema, or its name on the hub"
        )
    return StableDiffusionVAE.load(config.autoencoder).to(device)
