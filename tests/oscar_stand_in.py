"""The smallest OSCAR model: a token is the brightness of a square, and the network paints the square with it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codling.bitstream.index_tables import fit_index_model
from codling.bitstream.indices import IndexModel
from codling.codecs.oscar import OscarCodec
from codling.models.rate_levels import RateLevel, Tokens


class Squares:
    """Keeps the OSCAR model's contract without a network. gains: whether it wants its channels' gains transmitted."""

    levels = (RateLevel(32, 6, 0.3), RateLevel(16, 16, 0.5), RateLevel(8, 16, 0.7))
    grid = 32
    device = torch.device("cpu")

    def __init__(self, *, gains: bool = False):
        self.gains = gains
        self.decoded = 0

    def encode(self, image: Tensor, level: int) -> Tokens:
        assert image.shape[-2] % self.grid == 0
        assert image.shape[-1] % self.grid == 0
        entry = self.levels[level]
        grey = F.avg_pool2d(image.mean(1, keepdim=True), entry.stride)[:, 0]
        indices = ((grey + 1) / 2 * (entry.codebook_size - 1)).round().long()
        gains = image.std((2, 3)).clamp(min=1e-3).log() if self.gains else None
        return Tokens(indices[:, None], gains)

    def encode_levels(self, image: Tensor, levels: Sequence[int]) -> list[Tokens]:
        return [self.encode(image, level) for level in levels]

    def decode(self, tokens: Tokens, level: int) -> Tensor:
        self.decoded += 1
        return self.rough_latent(tokens, level)

    def latent(self, image: Tensor) -> Tensor:
        return image

    def rough_latent(self, tokens: Tokens, level: int) -> Tensor:
        entry = self.levels[level]
        grey = tokens.indices.float() / (entry.codebook_size - 1) * 2 - 1
        image = F.interpolate(grey, scale_factor=entry.stride).expand(-1, 3, -1, -1)
        return image if tokens.log_gains is None else image * tokens.log_gains.exp()[..., None, None]


def index_tables() -> list[IndexModel]:
    """Tables of maps like those of smooth pictures, one a level."""
    rng = np.random.default_rng(0)
    steps = [rng.integers(-1, 2, (40, 8, 8)).cumsum(-1).cumsum(-2) for _ in Squares.levels]
    sizes = [level.codebook_size for level in Squares.levels]
    return [
        fit_index_model(list(np.clip(size // 2 + step, 0, size - 1)), size)
        for step, size in zip(steps, sizes, strict=True)
    ]


def squares_codec(*, gains: bool = False, tables: bool = True) -> OscarCodec:
    return OscarCodec(
        Squares(gains=gains),
        name="squares",
        model_id=0x0C0DEC,
        index_models=index_tables() if tables else (),
        gains=3 if gains else 0,
    )
