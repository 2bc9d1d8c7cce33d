"""Our pixel-space OSCAR as the codecs see it: pictures of any size in tiles, noise from the shared generator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from codling.bitstream.prng import gaussians
from codling.codecs.chain import Chain
from codling.codecs.tiling import blend, pad_to_grid, plan_tiles
from codling.diffusion.guidance import VelocityFunction
from codling.errors import ConfigError
from codling.models.oscar import Oscar
from codling.models.rate_levels import RateLevel, Tokens

# Stream of the shared generator that the grain comes from; DiffC's streams count steps from 0.
GRAIN_STREAM = 0xFFFFFFFC


class PixelOscar:
    """An `Oscar` network as an OSCAR model, which tells pictures by tokens."""

    def __init__(self, network: Oscar):
        self.network = network.eval()
        self.grid = network.config.grid
        self.levels: tuple[RateLevel, ...] = network.levels

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
        """Tokens -> image (B, 3, H, W)."""
        return textured(self.network, self.rough_latent(tokens, level), self.network.noise[level])

    def latent(self, image: Tensor) -> Tensor:
        """The image itself: there is no autoencoder."""
        return image

    def rough_latent(self, tokens: Tokens, level: int) -> Tensor:
        """Tokens -> the coarse image (B, 3, H, W)."""
        with _autocast(self.device):
            coarse: Tensor = self.network.hyper.decode(tokens.indices, level)
        return coarse.float()


class OscarBackbone:
    """An `Oscar` network as a DiffC model: the channel coder tells a noisy state as with a linear model; the network
    makes a picture of it in one step. So it can finish what other models in pixels have decoded, too."""

    channels, stride, grid, conditional, gaussian = 3, 1, 1, False, True

    def __init__(self, network: Oscar):
        self.network = network.eval()

    @property
    def device(self) -> torch.device:
        return self.network.noise.device

    def condition(self, image: Tensor) -> bytes:
        return b""

    def velocity(self, condition: bytes, *, height: int, width: int) -> VelocityFunction:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            raise ConfigError("an OSCAR model restores a picture in one step: leave out steps and score_scale")

        return velocity

    def to_state(self, image: Tensor) -> Tensor:
        return image

    def to_image(self, state: Tensor) -> Tensor:
        return state

    def picture(self, chain: Chain) -> Tensor:
        # Of states with more noise than those that a first step leads to, which it never saw, it makes nothing good.
        if chain.level > chain.settings.times[0]:
            return chain.image_estimate()
        grid, (height, width) = self.network.config.grid, chain.state.shape[-2:]
        state, coarse = (pad_to_grid(x.to(self.device), grid) for x in (chain.sample(), chain.image_estimate()))
        image = restored(self.network, state, coarse, torch.tensor(chain.noise, device=self.device))
        return image[..., :height, :width]

    def textured(self, image: Tensor, error: float) -> Tensor:
        height, width = image.shape[-2:]
        coarse = pad_to_grid(image.to(self.device), self.network.config.grid)
        (noise_level,) = self.network.noise_of(torch.tensor([error], device=self.device))
        return textured(self.network, coarse, noise_level)[..., :height, :width]


def textured(network: Oscar, coarse: Tensor, noise_level: Tensor) -> Tensor:
    """Coarse images (B, 3, H, W), sides multiples of the network's grid, at a noise fraction () -> images."""
    # Every picture has the same grain.
    drawn = gaussians(coarse[0].numel(), stream=GRAIN_STREAM).reshape(coarse.shape[1:])
    state = network.noisy(coarse, noise_level, torch.from_numpy(drawn)[None].to(coarse.device))
    return restored(network, state, coarse, noise_level)


def restored(network: Oscar, state: Tensor, coarse: Tensor, noise_level: Tensor) -> Tensor:
    """States and coarse images (B, 3, H, W), sides multiples of the network's grid, at a noise fraction () -> images.

    All at once, or one by one in tiles where they are large.
    """
    config, device = network.config.denoiser, state.device
    height, width = state.shape[-2:]
    tiles = plan_tiles(height=height, width=width, tile=config.tile, overlap=config.overlap)

    def through(state: Tensor, coarse: Tensor) -> Tensor:
        with _autocast(device):
            out: Tensor = network.restore(state, coarse, noise_level.expand(len(state)))
        return out

    def in_tiles(state: Tensor, coarse: Tensor) -> Tensor:
        def on_tiles(pieces: Tensor, numbers: list[int]) -> Tensor:
            return through(pieces, torch.cat([tiles[n].cut(coarse) for n in numbers]))

        return blend(on_tiles, state, tiles, overlap=config.overlap, stride=1)

    if len(tiles) == 1:
        return through(state, coarse)
    return torch.cat([in_tiles(*each) for each in zip(state.split(1), coarse.split(1), strict=True)])


def _autocast(device: torch.device) -> torch.autocast:
    """bfloat16 but on CPUs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu")
