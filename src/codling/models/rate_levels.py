"""What an OSCAR model is to the codec: a table of rate levels, and tokens to and from pictures.

OSCAR (Guo et al. 2025) takes a compressed latent for a noisy one: the coarser its tokens, the earlier on the way from
noise to data. One network, told that place, undoes all of it in one evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class RateLevel:
    """An entry of a model's rate table.

    stride: pixels a token spans, each way. time: flow time in [0, 1] (0 noise, 1 data) at which a noisy latent is as
    far from the true one as this level's compressed latent. depth: tokens at each place, each of what the ones before
    left over; a level of depth d > 1 has the first d - 1 in common with the level before it in the table.
    """

    stride: int
    codebook_size: int
    time: float
    depth: int = 1


@dataclass(frozen=True)
class Tokens:
    """What a picture becomes, and all that its decoder is given.

    indices: (B, depth, h, w) int64, h = H / stride. log_gains: (B, C), the natural logarithm of the true latent's norm
    over that of the compressed one, by channel; None for models whose gain is learned or 1.
    """

    indices: Tensor
    log_gains: Tensor | None = None

    @classmethod
    def together(cls, pictures: "Sequence[Tokens]") -> "Tokens":
        """Those of pictures of one size, as of one batch."""
        gains = [tokens.log_gains for tokens in pictures if tokens.log_gains is not None]
        return cls(torch.cat([tokens.indices for tokens in pictures]), torch.cat(gains) if gains else None)

    def of(self, number: int) -> "Tokens":
        """Those of one picture of a batch, as of a batch of one."""
        one = slice(number, number + 1)
        return Tokens(self.indices[one], None if self.log_gains is None else self.log_gains[one])

    def to(self, device: torch.device) -> "Tokens":
        """The same on a device."""
        return Tokens(self.indices.to(device), None if self.log_gains is None else self.log_gains.to(device))


@runtime_checkable
class OscarModel(Protocol):
    """Pictures to tokens and back at several rates.

    levels: by ascending rate. grid: pictures' sides must be multiples of it. Both directions are deterministic, and
    decoding is one network evaluation.
    """

    @property
    def levels(self) -> tuple[RateLevel, ...]: ...

    @property
    def grid(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def encode(self, image: Tensor, level: int) -> Tokens:
        """Image (B, 3, H, W) in [-1, 1] -> tokens at a level."""
        ...

    def encode_levels(self, image: Tensor, levels: Sequence[int]) -> list[Tokens]:
        """The same at several levels, for one run of what they share."""
        ...

    def decode(self, tokens: Tokens, level: int) -> Tensor:
        """Tokens -> image (B, 3, H, W)."""
        ...


@runtime_checkable
class LatentModel(OscarModel, Protocol):
    """An OSCAR model that shows the latents in between, so that its pseudo-times can be measured."""

    def latent(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) -> its true latent (B, C, h, w)."""
        ...

    def rough_latent(self, tokens: Tokens, level: int) -> Tensor:
        """Tokens -> the compressed latent that the network is given, (B, C, h, w)."""
        ...
