"""CoD: the picture's indices are the file; the decoder grows the picture from noise under their condition.

encode: image -> condition encoder -> nearest codewords -> entropy coder -> payload
decode: payload -> indices -> condition; start noise -> sampler(guided velocity) -> state -> image
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from codling.bitstream.container import CodecId
from codling.bitstream.indices import IndexPredictor, decode_indices, encode_indices
from codling.bitstream.prng import gaussians
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.tiling import Tile, assemble, batches, blend, pad_to_grid, plan_tiles
from codling.diffusion.grid import uniform_grid
from codling.diffusion.guidance import VelocityFunction, guided
from codling.diffusion.samplers import sampler
from codling.errors import ConfigError, ModelError, RateError
from codling.models.autoencoder import Autoencoder, PixelSpace
from codling.models.cod import CoD


class CoDCodec:
    """A CoD model as a codec.

    index_model: None codes indices at fixed width. error: the squared error a sample that is expected of the picture of
    one step, None if it was not measured.
    """

    codec_id = CodecId.COD

    def __init__(
        self,
        model: CoD,
        *,
        name: str,
        model_id: int,
        index_model: IndexPredictor | None = None,
        autoencoder: Autoencoder | None = None,
        error: float | None = None,
    ):
        self.model = model.eval()
        self.name, self.model_id = name, model_id
        self.index_model = index_model
        self.autoencoder = autoencoder or PixelSpace()
        self.error = error
        self.precision = torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(self, image: Tensor, target: RateTarget) -> bytes:
        """Image (1, 3, H, W) in [-1, 1], any size -> payload (`docs/format.md`, "CoD payload").

        The rate is the picture's own: RateError where the target asks for another.
        """
        if (target.psnr, target.noise_level, target.level) != (None, None, None):
            raise RateError(f'codec "cod" of model {self.name} has one rate a picture; codec "diffc" has any')
        payload = self.encode_indices(self.indices(image))
        if target.max_bytes is not None and len(payload) > target.max_bytes:
            raise RateError(
                f"{target.max_bytes} bytes are left for the payload after the header, but model {self.name} needs "
                f"{len(payload)} for this picture; ask for {len(payload) - target.max_bytes} bytes more, or use "
                "another model"
            )
        return payload

    def encode_indices(self, indices: Tensor) -> bytes:
        """Indices (h, w) -> payload."""
        return encode_indices(indices.numpy(), self.model.config.condition.codebook_size, self.index_model)

    def decode_indices(self, payload: bytes, *, height: int, width: int) -> Tensor:
        """Payload of a picture of that size -> indices (1, h, w). Raises FormatError if it cannot be right."""
        stride, book = self.model.config.condition.stride, self.model.config.condition.codebook_size
        shape = (self._padded(height) // stride, self._padded(width) // stride)
        return torch.from_numpy(decode_indices(payload, shape, book, self.index_model))[None]

    def decode(self, payload: bytes, *, height: int, width: int, options: DecodeOptions) -> Tensor:
        """Payload -> image (1, 3, height, width). Raises FormatError before any network runs if it cannot be right.

        As `finishing_error` if another model is to finish it. A model with a finisher of its own takes that, unless
        steps, guidance or sampler are asked for.
        """
        if options.score_scale != 1.0:
            raise ConfigError("score_scale is of DiffC streams; this one has guidance instead")
        if options.finish is not None:
            error = self.finishing_error()
            image = self.faithful(self.decode_indices(payload, height=height, width=width), seed=options.seed)
            with torch.inference_mode():
                return options.finish.textured(image[..., :height, :width], error).float().cpu()
        indices = self.decode_indices(payload, height=height, width=width)
        by_steps = (options.steps, options.guidance, options.sampler) != (None, None, None)
        if self.model.config.finisher is not None and not by_steps:
            return self.finished(indices, seed=options.seed)[..., :height, :width]
        return self._image(self.sample(indices, options))[..., :height, :width]

    def faithful(self, indices: Tensor, *, seed: int = 0) -> Tensor:
        """Indices (1, h, w) -> the picture (1, 3, H, W) of one step without guidance, nearest to all that fit them."""
        return self._image(self.sample(indices, DecodeOptions(steps=1, guidance=1.0, seed=seed)))

    def finished(self, indices: Tensor, *, seed: int = 0) -> Tensor:
        """Indices (1, h, w) -> the faithful picture (1, 3, H, W) with texture, of a model with a finisher."""
        noise = self._noise(indices, seed=seed).to(self.device)
        tiles, conditions = self._conditions(indices)
        velocity = self._tiled(tiles, lambda numbers: conditions[numbers])

        def on_tiles(pieces: Tensor, numbers: list[int]) -> Tensor:
            grain = torch.cat([tiles[n].cut(noise) for n in numbers])
            return self.model.finish(pieces, grain, conditions[numbers])

        with torch.inference_mode(), self._autocast():
            faithful = noise + velocity(noise, noise.new_zeros(1))
            return blend(on_tiles, faithful, tiles, overlap=self.model.config.overlap, stride=1).float().cpu()

    def finishing_error(self) -> float:
        """What is expected of `faithful`, squared and a sample, for who finishes it.

        Raises ConfigError if states are no pixels, ModelError if the error was not measured.
        """
        if self.model.config.space != "pixel":
            raise ConfigError(f"model {self.name} decodes latents, and what finishes wants pixels; leave out finish")
        if self.error is None:
            raise ModelError(
                f"how far pictures of model {self.name} are off was not measured, which who finishes them is told; "
                f"leave out finish, or run `codling calibrate {self.name} --images DIR -o NEW` (with its directory, if "
                "`codling models` does not list it) and encode the pictures again, with model NEW"
            )
        return self.error

    @torch.inference_mode()
    def indices(self, image: Tensor) -> Tensor:
        """Indices (h, w) of an image of any size, padded by repeating its last row and column."""
        padded = pad_to_grid(image, self.model.config.grid)
        tall, wide = padded.shape[-2:]
        tiles = self._tiles(tall, wide)
        pieces: list[Tensor] = []
        with self._autocast():
            for numbers in batches(len(tiles)):
                batch = torch.cat([tiles[n].cut(padded) for n in numbers]).to(self.device)
                pieces += self.model.condition_codec.encode(batch).cpu()
        return assemble(pieces, tiles, height=tall, width=wide, stride=self.model.config.condition.stride)

    @torch.inference_mode()
    def sample(self, indices: Tensor, options: DecodeOptions) -> Tensor:
        """Indices (1, h, w) -> state (1, C, H / s, W / s) at t = 1, on the CPU."""
        config = self.model.config
        noise = self._noise(indices, seed=options.seed)
        velocity = self.velocity(indices, guidance=config.guidance if options.guidance is None else options.guidance)
        grid = uniform_grid(options.steps or config.steps, last_step=config.last_step)
        with self._autocast():
            return sampler(options.sampler or config.sampler)(velocity, noise.to(self.device), grid).float().cpu()

    def _noise(self, indices: Tensor, *, seed: int) -> Tensor:
        """The state (1, C, H / s, W / s) that decoding starts from, on the CPU."""
        config = self.model.config
        sides = (side * config.condition.stride // config.state_stride for side in indices.shape[-2:])
        shape = (1, config.channels, *sides)
        return torch.from_numpy(gaussians(math.prod(shape), seed=seed)).view(shape)

    def _image(self, state: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.autoencoder.decode(state.to(self.device)).float().cpu()

    def velocity(self, indices: Tensor, *, guidance: float) -> VelocityFunction:
        """The guided velocity of a picture with these indices (1, h, w), tile by tile where it is large."""
        config = self.model.config
        height, width = (side * config.condition.stride for side in indices.shape[-2:])
        tiles, conditions = self._conditions(indices)
        conditional = self._tiled(tiles, lambda numbers: conditions[numbers])
        # Without guidance the null condition is never asked for, so it is not worth an encoder's run.
        if guidance == 1.0:
            return conditional
        unconditional = self.null_velocity(height=height, width=width)
        return guided(conditional, unconditional, strength=guidance, interval=config.guidance_interval)

    def _conditions(self, indices: Tensor) -> tuple[list[Tile], Tensor]:
        """The tiles of a picture with these indices (1, h, w), and the condition map of each (n, C, h, w)."""
        stride = self.model.config.condition.stride
        tiles = self._tiles(*(side * stride for side in indices.shape[-2:]))
        with torch.inference_mode(), self._autocast():
            maps = [self.model.condition_codec.decode(tile.cut(indices, stride).to(self.device)) for tile in tiles]
        return tiles, torch.cat(maps)

    def null_velocity(self, *, height: int, width: int) -> VelocityFunction:
        """The velocity under the null condition, for states of a padded picture's size."""
        tiles = self._tiles(height, width)
        with torch.inference_mode(), self._autocast():
            null = self.model.null_condition(height=tiles[0].height, width=tiles[0].width)
        return self._tiled(tiles, lambda numbers: null.expand(len(numbers), -1, -1, -1))

    def _tiled(self, tiles: list[Tile], condition_of: Callable[[list[int]], Tensor]) -> VelocityFunction:
        config = self.model.config

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            def on_tiles(pieces: Tensor, numbers: list[int]) -> Tensor:
                return self.model.velocity(pieces, t.expand(len(numbers)), condition_of(numbers))

            with self._autocast():
                return blend(on_tiles, x, tiles, overlap=config.overlap, stride=config.state_stride)

        return velocity

    def _padded(self, side: int) -> int:
        return -(-side // self.model.config.grid) * self.model.config.grid

    def _tiles(self, height: int, width: int) -> list[Tile]:
        config = self.model.config
        return plan_tiles(height=height, width=width, tile=config.tile, overlap=config.overlap)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)
