"""DiffC: any rate from one denoiser (Theis et al. 2022; Vonderfecht and Liu 2025).

The encoder walks the picture's own state from pure noise towards the picture, a noise level at a time. At each step it
tells the decoder, by reverse channel coding, a sample of the true posterior of the next state; the denoiser's estimate
is what both know already, so only what it does not foresee costs bits. Stopping anywhere gives a picture.

encode: image -> state -> for each step: estimate, plan, message -> bits            (`diffc_encoder`)
decode: bits -> for each step: estimate, plan, codewords -> state -> estimate, or sampling on -> image

`docs/format.md` ("DiffC payload") has the bytes, `docs/diffc.md` the method.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from codling.bitstream.bits import BitReader, OutOfBitsError
from codling.bitstream.container import CodecId, Reader
from codling.codecs.activity_map import ActivityMap, Tables, read_map
from codling.codecs.backbones import Backbone, velocity_of
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.chain import Chain
from codling.codecs.diffc_encoder import Encoder
from codling.codecs.diffc_stream import (
    CHECK_BITS,
    DiffCConfig,
    affordable_memory,
    bits_to_message,
    checksum,
    checksum_agrees,
    read_colours,
    read_scale,
    read_settings,
)
from codling.diffusion.guidance import score_scaled
from codling.diffusion.samplers import sampler
from codling.errors import ConfigError, FormatError, ModelError, RateError
from codling.rcc.channel import group_bits, receive
from codling.rcc.trellis import Search


class DiffCCodec:
    """A diffusion model as a codec of any rate, with its error tables: by whether the model has its condition.

    search: what the encoder finds messages with; None is the fastest on the backbone's device, see `codecs.search`.
    """

    codec_id = CodecId.DIFFC

    def __init__(
        self, backbone: Backbone, config: DiffCConfig, tables: Mapping[bool, Tables], *, name: str, model_id: int,
        search: Search | None = None,
    ):  # fmt: skip
        self.backbone, self.config, self.tables, self.search = backbone, config, tables, search
        self.name, self.model_id = name, model_id

    def encode(self, image: Tensor, target: RateTarget) -> bytes:
        """Image (1, 3, H, W) in [-1, 1], any size -> payload. Raises RateError if the target cannot be met."""
        settings = self.config
        if target.max_bytes is not None:
            settings = replace(settings, memory=affordable_memory(target.max_bytes, settings.memory))
        return self.encode_with(settings, image, target)

    def encode_with(self, settings: DiffCConfig, image: Tensor, target: RateTarget) -> bytes:
        """As `encode`, with other times, threshold or trellis than the model's own; the stream carries them."""
        if target.level is not None:
            raise RateError(f'codec "diffc" of model {self.name} has any rate and no levels; ask for max_bytes instead')
        encoder = Encoder(self, settings, image, max_bytes=target.max_bytes)
        if target.max_bytes is not None:
            return encoder.to_bytes(target.max_bytes)
        if target.psnr is not None:
            return encoder.to_psnr(target.psnr)
        return encoder.to_level(self.config.level if target.noise_level is None else target.noise_level)

    def decode(self, payload: bytes, *, height: int, width: int, options: DecodeOptions) -> Tensor:
        """Payload, or its beginning -> image (1, 3, height, width). Raises FormatError if it cannot be right."""
        self._check(options)
        *_, (chain, _) = self.walk(payload, height=height, width=width)
        return self.finish(chain, height=height, width=width, options=options)

    def walk(self, payload: bytes, *, height: int, width: int) -> Iterator[tuple[Chain, int]]:
        """The decoder's chain before the first step and after each one that the payload has at least a part of.

        With it comes how many bytes of the payload were used so far. The chain is one object that walks on.

        Raises FormatError on settings and scales out of range, and where a checksum does not agree, which is either
        damage or a decoder that has drifted.
        """
        condition, message = self._split(payload)
        reader, before = BitReader(message), len(payload) - len(message)
        settings, found, colours, cut = self.config, None, None, False
        try:
            final, settings = read_settings(reader, self.config)
            _, rows, columns = self._shape(height, width)
            found = read_map(reader, self.tables_for(condition), rows, columns, self.backbone.stride)
            colours = read_colours(reader, self.backbone.channels)
        except OutOfBitsError:
            cut = True
        chain = self.start(condition, height=height, width=width, settings=settings, activity=found)
        if colours is not None:
            chain.colours = colours
        yield chain, before
        if cut:
            return
        try:
            scale = 0
            for following in settings.levels(final):
                scale = read_scale(reader, scale)
                plan, coded = chain.plan(following, scale)
                bits = group_bits(plan)
                groups = bits_to_message(reader.take_array(int(bits.sum())), bits)
                said = receive(groups, plan, size=chain.state.size, memory=settings.memory, step=chain.step)
                chain.advance(following, coded, said)
                yield chain, before + -(-reader.place // 8)
                if chain.step % settings.check_every == 0 and following != final:
                    wanted = reader.take(CHECK_BITS)
                    if not checksum_agrees(checksum(chain.estimate), wanted):
                        raise FormatError(
                            f"the checksum after step {chain.step} does not agree: the file is damaged before byte "
                            f"{before + reader.place // 8} of its payload, or this machine's network computes "
                            "something else than the encoder's (try device cpu)"
                        )
        except OutOfBitsError:
            return
        if reader.left >= 8:
            raise FormatError(f"{reader.left // 8} bytes follow the last step of the payload; the file is damaged")

    def finish(self, chain: Chain, *, height: int, width: int, options: DecodeOptions) -> Tensor:
        """The picture of a chain: its estimate with one step, sampled on from its state with more.

        Or what `options.finish` makes of it. Raises ConfigError on options that cannot be.
        """
        self._check(options)
        if options.finish is not None:
            with torch.inference_mode():
                return options.finish.picture(chain).float().cpu()[..., :height, :width]
        steps = self._steps(options)
        if steps == 1:
            with torch.inference_mode():
                return self.backbone.picture(chain).float().cpu()[..., :height, :width]
        grid = torch.linspace(1 - chain.noise, 1, steps + 1, dtype=torch.float64)
        velocity = score_scaled(chain.velocity, options.score_scale)
        with torch.inference_mode():
            state = sampler(options.sampler or self.config.sampler)(velocity, chain.sample(), grid)
            return self.backbone.to_image(state.to(self.backbone.device)).float().cpu()[..., :height, :width]

    def _check(self, options: DecodeOptions) -> None:
        """Raises ConfigError on options that a stream of this model cannot be decoded with."""
        if options.guidance not in (None, 1.0):
            raise ConfigError("guidance would leave what a DiffC stream says; use score_scale instead")
        if self._steps(options) == 1:
            if options.score_scale != 1.0:
                raise ConfigError("score_scale changes nothing in one step; leave it out, or ask for more steps")
            if options.sampler is not None:
                raise ConfigError("a sampler changes nothing in one step; leave it out, or ask for more steps")
        if options.finish is not None and self.backbone.stride != 1:
            raise ConfigError(
                f"streams of {self.name} are of latents, and what finishes a stream wants pixels; leave out finish"
            )

    def _steps(self, options: DecodeOptions) -> int:
        return self.config.steps if options.steps is None else options.steps

    def start(
        self, condition: bytes, *, height: int, width: int, settings: DiffCConfig, activity: ActivityMap | None = None
    ) -> Chain:
        """Pure noise of a picture's padded size, and the velocity under a condition."""
        shape, stride = self._shape(height, width), self.backbone.stride
        velocity = velocity_of(self.backbone, condition, height=shape[1] * stride, width=shape[2] * stride)
        table, layout = self.tables_for(condition).layout(activity, *shape[1:])
        return Chain.begin(velocity, table, settings, layout, shape, gaussian=self.backbone.gaussian)

    def _shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Of the state of a picture."""
        grid, stride = self.backbone.grid, self.backbone.stride
        return self.backbone.channels, -(-height // grid) * grid // stride, -(-width // grid) * grid // stride

    def tables_for(self, condition: bytes) -> Tables:
        """Those of the model with a condition, or without. Raises ModelError if it was not calibrated so."""
        if bool(condition) not in self.tables:
            wanted = "with its condition" if condition else "without its condition"
            raise ModelError(
                f"model {self.name} is not calibrated {wanted}: run `codling calibrate {self.name} --images DIR -o "
                "NEW` (with its directory, if `codling models` does not list it) and encode with model NEW"
            )
        return self.tables[bool(condition)]

    def _split(self, payload: bytes) -> tuple[bytes, bytes]:
        """Condition and messages; of a payload that was cut within the condition neither."""
        if not self.backbone.conditional:
            return b"", payload
        # A number has five bytes at most and goes on after each from 128 up.
        if len(payload) >= 5 or any(byte < 128 for byte in payload):
            reader = Reader(payload)
            end = reader.varint("length of the condition") + reader.place
            if end <= len(payload):
                return payload[reader.place : end], payload[end:]
        if False not in self.tables:
            raise FormatError(
                f"the file ends inside its condition, and model {self.name} decodes nothing without one; get more of it"
            )
        return b"", b""
