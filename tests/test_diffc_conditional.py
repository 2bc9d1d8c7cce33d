"""DiffC of a model that can have a condition: with it, without, and cut within it."""

import pytest
import torch

from codling.codecs.backbones import CoDBackbone
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.calibration import calibrate
from codling.codecs.cod import CoDCodec
from codling.codecs.diffc import DiffCCodec
from codling.codecs.diffc_stream import DiffCConfig
from codling.errors import FormatError, ModelError
from codling.pictures import to_image_array
from tests.conftest import noise_picture

FAITHFUL = DecodeOptions(steps=1)


def test_conditional_and_unconditional_cod(tiny_codec: CoDCodec) -> None:
    backbone = CoDBackbone(tiny_codec)
    image = torch.from_numpy(to_image_array(noise_picture(80, 112)))[None]
    tables = {conditional: calibrate(backbone, [image], conditional=conditional) for conditional in (True, False)}
    codec = DiffCCodec(backbone, DiffCConfig(memory=8), tables, name="tiny", model_id=3)
    base = len(backbone.condition(image))
    for target in (RateTarget(noise_level=700), RateTarget(max_bytes=base + 30), RateTarget(max_bytes=base - 3)):
        payload = codec.encode(image, target)
        assert (payload[0] == 0) == (target.max_bytes == base - 3)
        decoded = codec.decode(payload, height=80, width=112, options=DecodeOptions(steps=2))
        assert decoded.shape == image.shape
        assert decoded.isfinite().all()
    only = DiffCCodec(backbone, DiffCConfig(memory=8), {True: tables[True]}, name="tiny", model_id=3)
    payload = codec.encode(image, RateTarget(noise_level=700))
    nothing = codec.decode(b"", height=80, width=112, options=FAITHFUL)
    for size in (*range(4), base):
        assert torch.equal(codec.decode(payload[:size], height=80, width=112, options=FAITHFUL), nothing)
        with pytest.raises(FormatError, match="ends inside its condition"):
            only.decode(payload[:size], height=80, width=112, options=FAITHFUL)
    assert not torch.equal(codec.decode(payload[: base + 1], height=80, width=112, options=FAITHFUL), nothing)
    with pytest.raises(ModelError, match="not calibrated without its condition"):
        only.encode(image, RateTarget(max_bytes=base - 3))
