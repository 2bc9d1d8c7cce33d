"""Our pixel-space OSCAR as the codec sees it: pictures of any size in tiles, noise from the shared generator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from codling.bitstream.prng import gaussians
from codling.codecs.tiling import blend, plan_tiles
from codling.models.oscar import Oscar
from codling.models.rate_levels import RateLevel, Tokens

# Stream of the shared generator that the grain comes from; DiffC's streams count steps from 0.
GRAIN_STREAM = 0xFFFFFFFC


class PixelOscar:
    """An `Oscar` network as an OSCAR model."""

    def __init__(self, network: Oscar):
        self.network = network.eval()
        self.grid = network.config.grid
        self.levels: tuple[RateLevel, ...] = network.levels
        self.precision = torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def device(self) -> torch.device:
        return self.network.noise.device

    def encode(self, image: Tensor, level: int) -> Tokens:
        """Image (B, 3, H, W) in [-1, 1], sides multiples of `grid` -> tokens at a level."""
        return self.encode_levels(image, (level,))[0]

    def encode_levels(self, image: Tensor, levels: Sequence[int]) -> list[Tokens]:
        """The same at several levels, for one run of the encoder."""
        return [Tokens(indices) for indices in self.network.hyper.encode(image, levels)]

    def decode(self, tokens: Tokens, level: int) -> Tensor:
        """Tokens -> image (B, 3, H, W), each picture with the same grain."""
        config = self.network.config.denoiser
        coarse = self.rough_latent(tokens, level)
        height, width = coarse.shape[-2:]
        drawn = gaussians(coarse[0].numel(), stream=GRAIN_STREAM).reshape(coarse.shape[1:])
        noise = torch.from_numpy(drawn)[None].to(self.device)
        tiles = plan_tiles(height=height, width=width, tile=config.tile, overlap=config.overlap)

        def on_tiles(pieces: Tensor, numbers: list[int]) -> Tensor:
            grain = torch.cat([tiles[n].cut(noise) for n in numbers])
            levels = torch.full((len(pieces),), level, device=self.device)
            with self._autocast():
                restored: Tensor = self.network.restore(pieces, levels, grain)
            return restored

        pictures = [blend(on_tiles, one, tiles, overlap=config.overlap, stride=1) for one in coarse.split(1)]
        return torch.cat(pictures)

    def latent(self, image: Tensor) -> Tensor:
        """The image itself: there is no autoencoder."""
        return image

    def rough_latent(self, tokens: Tokens, level: int) -> Tensor:
        """Tokens -> the coarse image (B, 3, H, W)."""
        with self._autocast():
            coarse: Tensor = self.network.hyper.decode(tokens.indices, level)
        return coarse.float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)
