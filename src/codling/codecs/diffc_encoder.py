"""DiffC's encoder: one picture, up to a budget, a quality or a noise level."""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from codling.bitstream.bits import BitWriter
from codling.bitstream.container import varint
from codling.codecs.activity_map import ActivityMap, Tables, cells_for, measure, prior_power, write_map
from codling.codecs.backbones import Backbone, padded_state
from codling.codecs.chain import LEAST_COLOUR, START, Chain
from codling.codecs.diffc_stream import (
    CHECK_BITS,
    DiffCConfig,
    checksum,
    message_to_bits,
    write_colours,
    write_settings,
)
from codling.codecs.search import search_on
from codling.errors import RateError
from codling.rcc.channel import group_bits, receive, send
from codling.rcc.trellis import Search


class Parent(Protocol):
    """What the encoder uses of `diffc.DiffCCodec`."""

    name: str
    backbone: Backbone
    config: DiffCConfig
    search: Search | None

    def start(
        self, condition: bytes, *, height: int, width: int, settings: DiffCConfig, activity: ActivityMap | None = None
    ) -> Chain: ...

    def tables_for(self, condition: bytes) -> Tables: ...


@dataclass
class Progress:
    """How far an encoding has come: the chain, the scale sent last, the bits written."""

    chain: Chain
    scale: int
    writer: BitWriter

    def copy(self) -> "Progress":
        return Progress(replace(self.chain), self.scale, self.writer.copy())


class Encoder:
    """The encoding of one image (1, 3, H, W) in [-1, 1]; each `to_...` returns the payload."""

    def __init__(self, codec: Parent, settings: DiffCConfig, image: Tensor, *, max_bytes: int | None = None):
        self.codec, self.settings = codec, settings
        backbone = codec.backbone
        self.search = codec.search or search_on(backbone.device)
        height, width = image.shape[-2:]
        self.image = image.float()
        state = padded_state(backbone, self.image)[0].numpy()
        condition = backbone.condition(image) if backbone.conditional else b""
        # A condition that leaves nothing of the budget for the steps is better left out.
        if condition and max_bytes is not None:
            before = len(varint(len(condition))) + len(condition)
            if before + self._enough_for_head(codec.tables_for(condition)) > max_bytes:
                condition = b""
        self.head = varint(len(condition)) + condition if backbone.conditional else b""
        self.tables = codec.tables_for(condition)
        self.activity = self._activity(state, max_bytes)
        chain = codec.start(condition, height=height, width=width, settings=settings, activity=self.activity)
        self.source = chain.layout.coefficients(state)
        chain.measure_colours(self.source)
        self.now = Progress(chain, 0, BitWriter())

    def _activity(self, state: np.ndarray, max_bytes: int | None) -> ActivityMap | None:
        """The map for a budget, if the model's streams have one; what comes before it is paid from the budget."""
        if self.tables.local is None:
            return None
        stride, (height, width) = self.codec.backbone.stride, state.shape[1:]
        if max_bytes is not None:
            max_bytes -= len(self.head) + self._enough_for_head(self.tables)
        code = cells_for(max_bytes, height, width, stride)
        if not code:
            return None
        # In units of what is expected without a condition: maps are of pictures, not of what a condition leaves open.
        return measure(state, prior_power(self.codec.tables_for(b"").whole, height, width), code, stride)

    def _enough_for_head(self, tables: Tables) -> int:
        """Bytes that what comes before the first step takes at most, without condition and map."""
        head = BitWriter()
        write_settings(head, 1, self.settings, self.codec.config)
        write_map(head, None, tables)
        write_colours(head, np.full(self.codec.backbone.channels, LEAST_COLOUR))
        return -(-head.count // 8)

    def to_level(self, final: int) -> bytes:
        """Until a noise level, 1 to 1022."""
        if not 0 < final < START:
            raise RateError(f"a stream ends at a noise level from 1 to {START - 1} (of 1024), got {final}")
        levels = self.settings.levels(final)
        for following in levels:
            self._take(following, last=following == final)
        return self._payload(final)

    def to_bytes(self, budget: int) -> bytes:
        """Until the payload has `budget` bytes exactly; fewer only if the schedule ends before."""
        empty = BitWriter()
        self._write_head(empty, 1)
        smallest = len(self.head) + -(-empty.count // 8)
        if budget < smallest:
            raise RateError(
                f"{budget} bytes are left for the payload after the header, but model {self.codec.name} needs at least "
                f"{smallest} for this picture; ask for {smallest - budget} bytes more"
            )
        capacity = 8 * (budget - len(self.head)) - empty.count
        final = START - 1
        for following in self.settings.times:
            left = capacity - self.now.writer.count
            if self._cost(following) >= left:
                final = self._level_that_costs(left, following)
                self._take(final, last=True)
                break
            final = following
            self._take(following, last=following == self.settings.times[-1])
        return self._payload(final)[:budget]

    def to_psnr(self, wanted: float) -> bytes:
        """Until the faithful picture has at least this PSNR in dB."""
        for following in self.settings.times:
            before = self.now.copy()
            self._take(following, last=True)
            if self._psnr() >= wanted:
                return self._payload(self._level_that_suffices(wanted, before, following))
            if following != self.settings.times[-1]:
                self._check()
        raise RateError(
            f"a PSNR of {wanted} dB is out of reach: with all of its {len(self.settings.times)} steps model "
            f"{self.codec.name} gets {self._psnr():.2f} dB on this picture"
        )

    def _take(self, following: int, *, last: bool) -> None:
        """Write a step and walk it."""
        now, chain = self.now, self.now.chain
        scale = now.chain.scale_of(self.source, following, now.scale)
        now.writer.put_signed(scale - now.scale)
        now.scale = scale
        plan, coded = chain.plan(following, scale)
        target, memory = chain.target(self.source, following), self.settings.memory
        message = send(target, plan, memory=memory, step=chain.step, search=self.search)
        now.writer.extend(message_to_bits(message, group_bits(plan)))
        said = receive(message, plan, size=self.source.size, memory=memory, step=chain.step)
        chain.advance(following, coded, said)
        if not last:
            self._check()

    def _check(self) -> None:
        """The checksum of every few steps."""
        if self.now.chain.step % self.settings.check_every == 0:
            self.now.writer.put(checksum(self.now.chain.estimate), CHECK_BITS)

    def _cost(self, following: int) -> int:
        """Bits of a step, checksum not included."""
        chain = self.now.chain
        scale = chain.scale_of(self.source, following, self.now.scale)
        side = BitWriter()
        side.put_signed(scale - self.now.scale)
        plan, _ = chain.plan(following, scale)
        return side.count + int(group_bits(plan).sum())

    def _level_that_costs(self, bits: int, lowest: int) -> int:
        """The largest noise level, from `lowest` up, that takes at least so many bits to reach."""
        low, high = lowest, self.now.chain.level - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._cost(middle) >= bits else (low, middle - 1)
        return low

    def _level_that_suffices(self, wanted: float, before: Progress, lowest: int) -> int:
        """The largest noise level, from `lowest` up, at which the picture has the PSNR; walks there from `before`."""
        low, high = lowest, before.chain.level - 1
        while low < high:
            middle = (low + high + 1) // 2
            self.now = before.copy()
            self._take(middle, last=True)
            low, high = (middle, high) if self._psnr() >= wanted else (low, middle - 1)
        self.now = before.copy()
        self._take(low, last=True)
        return low

    def _psnr(self) -> float:
        """Of the faithful picture, rounded to 8 bits."""
        with torch.inference_mode():
            decoded = self.codec.backbone.picture(self.now.chain).float().cpu()
        height, width = self.image.shape[-2:]
        error = _to_8_bits(decoded[..., :height, :width]) - _to_8_bits(self.image)
        return 10 * math.log10(255**2 / max(float(error.square().mean()), 1e-10))

    def _payload(self, final: int) -> bytes:
        whole = BitWriter()
        self._write_head(whole, final)
        whole.append(self.now.writer)
        return self.head + whole.to_bytes()

    def _write_head(self, writer: BitWriter, final: int) -> None:
        """All that comes before the first step."""
        write_settings(writer, final, self.settings, self.codec.config)
        write_map(writer, self.activity, self.tables)
        write_colours(writer, self.now.chain.colours)


def _to_8_bits(image: Tensor) -> Tensor:
    return ((image.clamp(-1, 1) + 1) * 127.5).round()
