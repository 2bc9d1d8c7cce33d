"""What every codec offers, and the decoder's choices."""

import operator
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, runtime_checkable

from torch import Tensor

from codling.bitstream.container import CodecId
from codling.codecs.chain import Chain
from codling.diffusion.samplers import sampler
from codling.errors import ConfigError, RateError


@runtime_checkable
class Finisher(Protocol):
    """What gives texture to what another model has decoded, in one step."""

    def picture(self, chain: Chain) -> Tensor:
        """The picture (1, 3, h, w) of where a DiffC stream of pixels ends, its sides as the chain's."""
        ...

    def textured(self, image: Tensor, error: float) -> Tensor:
        """The picture for one (1, 3, H, W) in [-1, 1] that has this squared error a sample, as far as is expected."""
        ...


@dataclass(frozen=True)
class DecodeOptions:
    """Choices of the decoder; none of them is in the stream. None means the model's own default.

    steps: network evaluations (for second-order samplers); 1 gives the faithful, mean-like picture, more the
        realistic one. guidance: strength of classifier-free guidance, 1 for none. sampler: of more than one step, see
        `diffusion.samplers`.
        Without all three a CoD model with a finisher gives texture to the faithful picture.
    seed: of the start noise, 0 to 2^64 - 1. score_scale: of a DiffC stream's probability flow, above 1 smoother.
    finish: what makes the picture of what the stream's own model decodes, None for that itself.
    """

    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    seed: int = 0
    score_scale: float = 1.0
    finish: Finisher | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "seed"):
            _check_whole(name, getattr(self, name))
        if not isinstance(self.guidance, Real | None):
            raise ConfigError(f"guidance must be a number, got {self.guidance!r}")
        if not isinstance(self.score_scale, Real):
            raise ConfigError(f"score_scale must be a number, got {self.score_scale!r}")
        if not isinstance(self.finish, Finisher | None):
            raise ConfigError(
                "finish must be the name or directory of an OSCAR in pixels like oscar-s, or what `load_finisher` "
                f"returned, got {type(self.finish).__name__}"
            )
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.steps}")
        if self.guidance is not None and not 0 <= self.guidance <= 100:
            raise ConfigError(f"guidance must be between 0 and 100, got {self.guidance}")
        if self.sampler is not None:
            sampler(self.sampler)
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"the seed must be between 0 and 2^64 - 1, got {self.seed}")
        if not 0.1 <= self.score_scale <= 10:
            raise ConfigError(f"the score's scale must be between 0.1 and 10, got {self.score_scale}")
        if self.finish is not None and (
            self.steps not in (None, 1) or self.guidance not in (None, 1.0) or self.sampler or self.score_scale != 1.0
        ):
            raise ConfigError(
                "what finishes a stream takes one step of its own: leave out steps, guidance, sampler and score_scale"
            )


@dataclass(frozen=True)
class RateTarget:
    """How far an encoder should go; at most one is given, none means the codec's own default.

    max_bytes: of the payload, met from below. psnr: dB of the faithful picture, met from above. noise_level: where
    DiffC stops, in 1024ths of noise. level: of OSCAR's rate table, 0 the lowest rate.
    """

    max_bytes: int | None = None
    psnr: float | None = None
    noise_level: int | None = None
    level: int | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) > 1:
            raise RateError(f"one rate target at most, got {' and '.join(given)}")


class Codec(Protocol):
    """A model bound to a scheme. `name` and `model_id` say which model; `codec_id` which scheme."""

    name: str
    model_id: int
    codec_id: CodecId

    def encode(self, image: Tensor, target: RateTarget) -> bytes:
        """Image (1, 3, H, W) float32 in [-1, 1], any size -> payload. Raises RateError on a target out of reach."""
        ...

    def decode(self, payload: bytes, *, height: int, width: int, options: DecodeOptions) -> Tensor:
        """Payload -> image (1, 3, height, width) float32. Raises FormatError on a payload that cannot be right."""
        ...


def _check_whole(name: str, value: int | None) -> None:
    try:
        if value is not None:
            operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} must be a whole number, got {value!r}") from None
