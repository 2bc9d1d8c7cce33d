"""What DiffC needs of a model: a velocity on states of any size, and what it is conditioned on."""

from typing import Protocol

import torch
from torch import Tensor

from codling.codecs.chain import Chain
from codling.codecs.cod import CoDCodec
from codling.codecs.tiling import blend, pad_to_grid, plan_tiles
from codling.diffusion.guidance import VelocityFunction
from codling.models.denoiser import SMALLEST_NOISE, Denoiser
from codling.models.wiener import WienerFilter


class Backbone(Protocol):
    """A diffusion model as DiffC sees it.

    channels: of a state. stride: pixels a sample of the state covers. grid: what picture sides are padded to multiples
    of. conditional: whether there can be a condition, and so whether streams have a place for it. gaussian: whether the
    estimates of a stream's steps are made of the error tables alone, as posterior means of Gaussians.
    """

    channels: int
    stride: int
    grid: int
    conditional: bool
    gaussian: bool

    @property
    def device(self) -> torch.device: ...

    def condition(self, image: Tensor) -> bytes:
        """What the decoder can be told of an image (1, 3, H, W) before the first step."""
        ...

    def velocity(self, condition: bytes, *, height: int, width: int) -> VelocityFunction:
        """Velocity without guidance, on states (1, channels, height / stride, width / stride) of a padded picture.

        States and times are on the backbone's device; `velocity_of` is for those of a chain. An empty condition is
        none. Raises FormatError on a condition that cannot be right.
        """
        ...

    def to_state(self, image: Tensor) -> Tensor:
        """Image (1, 3, H, W), sides in multiples of `grid` -> the state at t = 1."""
        ...

    def to_image(self, state: Tensor) -> Tensor:
        """The inverse of `to_state`, as well as the autoencoder can."""
        ...

    def picture(self, chain: Chain) -> Tensor:
        """Where a walk ends, the padded image without more steps: of the estimate, or what one-step models restore."""
        ...


def padded_state(backbone: Backbone, image: Tensor) -> Tensor:
    """Image (1, 3, H, W) of any size -> its state at t = 1, float32 on the CPU, of sides padded to the grid."""
    with torch.inference_mode():
        return backbone.to_state(pad_to_grid(image, backbone.grid).to(backbone.device)).float().cpu()


def velocity_of(backbone: Backbone, condition: bytes, *, height: int, width: int) -> VelocityFunction:
    """`backbone.velocity` for states and times on the CPU, where chains have them; the result is there too, float32."""
    velocity, device = backbone.velocity(condition, height=height, width=width), backbone.device
    return lambda x, t: velocity(x.to(device), t.to(device)).float().cpu()


class DenoiserBackbone:
    """A pixel-space denoiser without a condition: the trained network, or the Wiener filter alone."""

    channels, stride, conditional = 3, 1, False

    def __init__(self, model: Denoiser | WienerFilter):
        self.model = model.eval()
        self.gaussian = isinstance(model, WienerFilter)
        self.grid = model.config.grid
        self.precision = torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def device(self) -> torch.device:
        return next(self.model.buffers()).device

    def condition(self, image: Tensor) -> bytes:
        return b""

    def velocity(self, condition: bytes, *, height: int, width: int) -> VelocityFunction:
        config = self.model.config
        tiles = plan_tiles(height=height, width=width, tile=config.tile, overlap=config.overlap)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            # At the very end of the flow nothing is left to remove and the quotient below would be 0 / 0.
            noise = (1 - t).float().clamp(min=SMALLEST_NOISE)

            def on_tiles(pieces: Tensor, numbers: list[int]) -> Tensor:
                with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                    return self.model(pieces, noise.expand(len(numbers))).float()

            estimate = blend(on_tiles, x, tiles, overlap=config.overlap, stride=1)
            return (estimate - x) / noise.view(-1, 1, 1, 1)

        return velocity

    def to_state(self, image: Tensor) -> Tensor:
        return image

    def to_image(self, state: Tensor) -> Tensor:
        return state

    def picture(self, chain: Chain) -> Tensor:
        return chain.image_estimate()


class CoDBackbone:
    """A CoD model: its indices come first in the stream and their condition guides every step, or there are none."""

    conditional, gaussian = True, False

    def __init__(self, codec: CoDCodec):
        config = codec.model.config
        self.codec = codec
        self.channels, self.stride, self.grid = config.channels, config.state_stride, config.grid

    @property
    def device(self) -> torch.device:
        return self.codec.device

    def condition(self, image: Tensor) -> bytes:
        return self.codec.encode_indices(self.codec.indices(image))

    def velocity(self, condition: bytes, *, height: int, width: int) -> VelocityFunction:
        if not condition:
            return self.codec.null_velocity(height=height, width=width)
        indices = self.codec.decode_indices(condition, height=height, width=width)
        return self.codec.velocity(indices, guidance=1.0)

    def to_state(self, image: Tensor) -> Tensor:
        return self.codec.autoencoder.encode(image)

    def to_image(self, state: Tensor) -> Tensor:
        return self.codec.autoencoder.decode(state)

    def picture(self, chain: Chain) -> Tensor:
        return self.to_image(chain.image_estimate().to(self.device))
