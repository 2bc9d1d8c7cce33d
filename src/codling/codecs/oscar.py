"""OSCAR: a picture's indices at one of several rates, and one network evaluation to make the picture of them.

encode: image -> model's tokens at a level -> entropy coder -> payload
decode: payload -> tokens -> one evaluation of the network, told the level -> image
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from codling.bitstream.bits import packed_size
from codling.bitstream.container import CodecId
from codling.bitstream.indices import IndexPredictor, Mode, decode_maps, encode_maps, index_bits
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.tiling import pad_to_grid
from codling.errors import ConfigError, FormatError, RateError
from codling.models.rate_levels import OscarModel, Tokens

# Channel gains in natural logarithms, a signed byte each: factors from exp(-8) to exp(7.9), in steps of 6%.
GAIN_STEP = 1 / 16
GAIN_RANGE = (-128, 127)
MODES = len(Mode)
# A payload's first byte says level and mode.
MAX_LEVELS = 256 // MODES


class OscarCodec:
    """An OSCAR model as a codec.

    index_models: integer tables of the map of indices that each level adds; without them indices are coded at fixed
    width. gains: how many channel gains the model wants transmitted, 0 if it makes do without.
    """

    codec_id = CodecId.OSCAR

    def __init__(
        self,
        model: OscarModel,
        *,
        name: str,
        model_id: int,
        index_models: Sequence[IndexPredictor] = (),
        gains: int = 0,
    ):
        if len(model.levels) > MAX_LEVELS:
            raise ConfigError(
                f"model {name} has {len(model.levels)} levels; a payload's first byte can name {MAX_LEVELS} at most"
            )
        if index_models and len(index_models) != len(model.levels):
            raise ConfigError(f"{len(index_models)} index tables for {len(model.levels)} levels; wanted one a level")
        self.model, self.name, self.model_id, self.gains = model, name, model_id, gains
        self.index_models = index_models

    def encode(self, image: Tensor, target: RateTarget) -> bytes:
        """Image (1, 3, H, W) in [-1, 1], any size -> payload (`docs/format.md`, "OSCAR payload").

        At the target's level, at the highest whose payload takes no more than its bytes, or else at the highest there
        is. Raises RateError on a level out of range, a budget below all levels, and other targets.
        """
        (tokens,) = self.tokens(image, [target])
        return self.pack_within(tokens, target, height=image.shape[-2], width=image.shape[-1])

    def tokens(self, images: Tensor, targets: Sequence[RateTarget]) -> list[dict[int, Tokens]]:
        """Images (B, 3, H, W) and a target each -> of each its tokens by level, at the levels that `pack_within` may
        take; all go through the network at once. Raises RateError as `encode`, but for what no network has to say."""
        wanted = [self._levels_for(target, *images.shape[-2:]) for target in targets]
        levels = sorted({level for chosen in wanted for level in chosen})
        found = dict(zip(levels, self._tokens(images, levels), strict=True)) if levels else {}
        return [{level: found[level].of(number) for level in chosen} for number, chosen in enumerate(wanted)]

    @torch.inference_mode()
    def _tokens(self, images: Tensor, levels: Sequence[int]) -> list[Tokens]:
        """Images of any size -> tokens at these levels."""
        return self.model.encode_levels(pad_to_grid(images, self.model.grid).to(self.model.device), levels)

    def decode(self, payload: bytes, *, height: int, width: int, options: DecodeOptions) -> Tensor:
        """Payload -> image (1, 3, height, width). Raises FormatError before any network runs if it cannot be right.

        The network runs once, and no draw is the decoder's choice: ConfigError if the options ask for anything else. A
        seed changes nothing, as the noise that a level adds is the same for all.
        """
        if options.steps not in (None, 1) or options.guidance not in (None, 1.0) or options.sampler is not None:
            raise ConfigError('codec "oscar" decodes in one step, without guidance or sampler; leave these options out')
        if options.score_scale != 1.0:
            raise ConfigError('score_scale is for DiffC streams; codec "oscar" follows no score')
        if options.finish is not None:
            raise ConfigError('codec "oscar" makes texture itself; leave out finish')
        return self.images([self.unpack(payload, height=height, width=width)], height=height, width=width)

    def images(self, unpacked: Sequence[tuple[Tokens, int]], *, height: int, width: int) -> Tensor:
        """What `unpack` made of payloads of pictures of one size -> images (B, 3, height, width), those of a level
        through the network at once."""
        images = torch.empty(len(unpacked), 3, height, width)
        for level in {level for _, level in unpacked}:
            numbers = [number for number, (_, of) in enumerate(unpacked) if of == level]
            tokens = Tokens.together([unpacked[number][0] for number in numbers]).to(self.model.device)
            with torch.inference_mode():
                images[numbers] = self.model.decode(tokens, level).float().cpu()[..., :height, :width]
        return images

    def pack(self, tokens: Tokens, level: int) -> bytes:
        """Tokens of one picture -> payload."""
        entry = self.model.levels[level]
        coded = encode_maps(tokens.indices[0].cpu().numpy(), entry.codebook_size, self._tables(level))
        return bytes([level * MODES + coded[0]]) + self._pack_gains(tokens.log_gains) + coded[1:]

    def unpack(self, payload: bytes, *, height: int, width: int) -> tuple[Tokens, int]:
        """Payload of a picture of that size -> tokens and level. Raises FormatError if it cannot be right."""
        if len(payload) < 1 + self.gains:
            raise FormatError(f"the payload has {len(payload)} bytes; wanted a level, {self.gains} gains and indices")
        level, mode = divmod(payload[0], MODES)
        if level >= len(self.model.levels):
            raise FormatError(f"the payload claims level {level}; model {self.name} has {self._levels}")
        entry = self.model.levels[level]
        shape = (entry.depth, self._padded(height) // entry.stride, self._padded(width) // entry.stride)
        coded = bytes([mode]) + payload[1 + self.gains :]
        indices = decode_maps(coded, shape, entry.codebook_size, self._tables(level))
        gains = np.frombuffer(payload[1 : 1 + self.gains], np.int8).astype(np.float32) * GAIN_STEP
        return Tokens(torch.from_numpy(indices)[None], torch.from_numpy(gains)[None] if self.gains else None), level

    def _pack_gains(self, log_gains: Tensor | None) -> bytes:
        count = 0 if log_gains is None else log_gains.shape[1]
        if count != self.gains:
            raise ConfigError(f"model {self.name} gave {count} channel gains, its codec was set up for {self.gains}")
        if log_gains is None:
            return b""
        steps = (log_gains[0].double().cpu() / GAIN_STEP).round()
        low, high = GAIN_RANGE
        if not bool(((steps >= low) & (steps <= high)).all()):
            raise RateError(
                f"the gains of the latent's channels are exp({', '.join(f'{g:.1f}' for g in log_gains[0].tolist())}); "
                f"wanted between exp({low * GAIN_STEP}) and exp({high * GAIN_STEP}): is the picture one flat colour, "
                "or the model untrained? Another level or model may do"
            )
        return steps.numpy().astype(np.int8).tobytes()

    def _levels_for(self, target: RateTarget, height: int, width: int) -> list[int]:
        """The levels that a picture's tokens are wanted of, ascending. Raises RateError on a target that cannot be."""
        if target.psnr is not None or target.noise_level is not None:
            raise RateError(f'codec "oscar" of model {self.name} has {self._levels}; ask for a level or for max_bytes')
        everything = range(len(self.model.levels))
        if target.level is not None:
            if target.level not in everything:
                raise RateError(f"model {self.name} has {self._levels}, got level {target.level}")
            return [target.level]
        if target.max_bytes is None:
            return [everything[-1]]
        # Without tables the length is known beforehand, and a level that cannot fit is not worth a network.
        return [n for n in everything if self.index_models or self._raw_size(n, height, width) <= target.max_bytes]

    def pack_within(self, tokens: Mapping[int, Tokens], target: RateTarget, *, height: int, width: int) -> bytes:
        """Tokens of one picture by level -> the payload of the highest level that the target allows.

        Raises RateError if there is none, naming the smallest number of bytes there is.
        """
        sizes: dict[int, int] = {}
        unfit: RateError | None = None
        max_bytes = target.max_bytes
        for level in sorted(tokens, reverse=True):
            try:
                payload = self.pack(tokens[level], level)
            except RateError as error:
                # With a budget the next level may do.
                unfit = error
                continue
            if max_bytes is None or len(payload) <= max_bytes:
                return payload
            sizes[level] = len(payload)
        if unfit is not None and not sizes:
            raise unfit
        assert max_bytes is not None
        others = {n: self._raw_size(n, height, width) for n in range(len(self.model.levels)) if n not in tokens}
        smallest, level = min((size, level) for level, size in (sizes | others).items())
        raise RateError(
            f"{max_bytes} bytes are left for the payload after the header, but model {self.name} needs at least "
            f"{smallest} for this picture (level {level}); ask for {smallest - max_bytes} bytes more"
        )

    def _raw_size(self, level: int, height: int, width: int) -> int:
        entry = self.model.levels[level]
        count = entry.depth * self._padded(height) // entry.stride * (self._padded(width) // entry.stride)
        return 1 + self.gains + packed_size(count, index_bits(entry.codebook_size))

    def _tables(self, level: int) -> Sequence[IndexPredictor] | None:
        """Of each map of a level: those it has in common with the levels before it, and its own."""
        depth = self.model.levels[level].depth
        return self.index_models[level - depth + 1 : level + 1] if self.index_models else None

    @property
    def _levels(self) -> str:
        return f"levels 0 to {len(self.model.levels) - 1}"

    def _padded(self, side: int) -> int:
        return -(-side // self.model.grid) * self.model.grid
