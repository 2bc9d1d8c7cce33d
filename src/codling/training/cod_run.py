"""Training of CoD: condition codec, codebook and diffusion transformer together."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from codling.errors import ConfigError
from codling.models.cod import CoD
from codling.training.averages import CodebookAverage
from codling.training.recipes import TrainingConfig
from codling.training.run import Run
from codling.training.terms import Draws, ReconstructionHead, StepResult, check_weights, cod_step, total


class CoDRun(Run[TrainingConfig]):
    """A CoD model with its reconstruction head and the running means of its codebook."""

    def __init__(self, config: TrainingConfig, device: torch.device):
        check_weights(config.weights)
        if config.model.space != "pixel":
            raise ConfigError("training works in pixel space so far; set model.space=pixel")
        torch.manual_seed(config.seed)
        model = CoD(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = config.model.transformer
        head = ReconstructionHead(
            shape.width, channels=shape.channels, patch=shape.patch, layers=config.reconstruction_layers
        ).to(device)
        if config.codebook == "average":
            model.condition_codec.quantiser.embedding.requires_grad_(False)
        super().__init__(config, device, model, head)
        self.codebook = CodebookAverage(self.embedding)
        self._result: StepResult | None = None

    @property
    def embedding(self) -> Tensor:
        embedding: Tensor = self.model.condition_codec.quantiser.embedding
        return embedding

    @property
    def encoding(self) -> bool:
        """Whether the encoder still learns."""
        return self.config.freeze_encoder_from is None or self.step < self.config.freeze_encoder_from

    def loss(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        draws = Draws.make(
            image.shape,
            null_condition=config.null_condition,
            one_step_share=config.one_step_share,
            seed=config.seed,
            step=self.step,
            device=self.device,
        )
        with self.autocast():
            self._result = cod_step(
                self.model,
                self.head,  # type: ignore[arg-type]
                image,
                image,
                draws,
                quantise=self.step >= config.quantise_from,
                denoise=self.step >= config.denoise_from,
                encode=self.encoding,
            )
        return total(self._result.terms, config.weights), self._result.terms

    def after_step(self) -> None:
        """Move the codebook."""
        result = self._result
        assert result is not None
        if self.config.codebook == "average" and self.encoding and self.step >= self.config.quantise_from:
            features = result.features.movedim(1, -1)[result.counted].flatten(0, 2)
            self.codebook.update(
                self.embedding.data, features, result.indices[result.counted].flatten(), seed=self.step
            )

    def extra_state(self) -> dict[str, dict[str, Tensor]]:
        return {"codebook": {"count": self.codebook.count, "sum": self.codebook.sum}}

    def restore_extra(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.codebook.count, self.codebook.sum = state["codebook"]["count"], state["codebook"]["sum"]

    def new_model(self) -> nn.Module:
        return CoD(self.config.model)

    def networks(self, config: TrainingConfig) -> object:
        return (config.model.condition, config.model.transformer, config.model.sigma_data)

    @torch.no_grad()
    def one_step_psnr(self, pictures: list[np.ndarray]) -> float:
        """Mean PSNR in dB of the averaged model's one-step pictures on centre crops; for the log only."""
        model, crop, scores = self.averaged_model(), self.config.crop, []
        for number, picture in enumerate(pictures):
            top, left = (picture.shape[0] - crop) // 2, (picture.shape[1] - crop) // 2
            square = picture[top : top + crop, left : left + crop]
            image = torch.from_numpy(square / np.float32(127.5) - 1).permute(2, 0, 1)[None].to(self.device)
            noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(number)).to(self.device)
            condition = model.condition_codec.decode(model.condition_codec.encode(image))
            decoded = (noise + model.velocity(noise, torch.zeros(1, device=self.device), condition)).clamp(-1, 1)
            scores.append(-10 * math.log10(float((decoded - image).square().mean()) / 4))
        return float(np.mean(scores))

    def validate(self, pictures: list[np.ndarray]) -> str:
        return f"one-step PSNR {self.one_step_psnr(pictures):.2f} dB on validation crops"
