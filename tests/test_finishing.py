"""What other models have decoded, finished by an OSCAR network: DiffC's streams, and CoD's picture of one step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import codling
from codling.bitstream.container import CodecId
from codling.codecs.backbones import DenoiserBackbone
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.calibration import expected_error
from codling.codecs.cod import CoDCodec
from codling.codecs.diffc import DiffCCodec
from codling.codecs.oscar_pixel import OscarBackbone
from codling.errors import ConfigError, ModelError
from codling.models.cod import CoD
from codling.models.dit import TransformerConfig
from codling.pictures import load_picture, to_image_array
from codling.weights.registry import load
from tests.conftest import tiny_config, tiny_model
from tests.tiny_oscar import CONFIG, CPU, image, tiny_oscar

HEIGHT, WIDTH = 75, 101
FAITHFUL = DecodeOptions(steps=1, guidance=1.0)


@pytest.fixture(scope="module")
def network_codec() -> DiffCCodec:
    codec = load("diffc-xs", device=CPU, codec=CodecId.DIFFC)
    assert isinstance(codec, DiffCCodec)
    return codec


class Latents(DenoiserBackbone):
    """Says that its states are not pixels."""

    stride = 8


def decoded(codec: DiffCCodec, payload: bytes) -> torch.Tensor:
    return codec.decode(payload, height=HEIGHT, width=WIDTH, options=DecodeOptions())


def cod(error: float | None = 0.02) -> CoDCodec:
    return CoDCodec(tiny_model(tiny_config()), name="tiny", model_id=0, error=error)


def test_a_stream_of_another_model_is_finished(network_codec: DiffCCodec) -> None:
    """By the OSCAR network, of the state and the estimate that the stream's own model has got to."""
    finisher, picture = OscarBackbone(tiny_oscar()), image(HEIGHT, WIDTH)
    payload = network_codec.encode(picture, RateTarget(max_bytes=200))
    *_, (chain, _) = network_codec.walk(payload, height=HEIGHT, width=WIDTH)
    found = network_codec.decode(payload, height=HEIGHT, width=WIDTH, options=DecodeOptions(finish=finisher))
    assert found.shape == (1, 3, HEIGHT, WIDTH)
    with torch.inference_mode():
        wanted = finisher.picture(chain)[..., :HEIGHT, :WIDTH]
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, decoded(network_codec, payload), atol=1e-2)
    # Any beginning, too; of one that tells nothing yet the picture stays as it is.
    for end, same in ((0, True), (1, True), (60, False)):
        early = network_codec.decode(payload[:end], height=HEIGHT, width=WIDTH, options=DecodeOptions(finish=finisher))
        assert torch.equal(early, decoded(network_codec, payload[:end])) == same


def test_what_cannot_be_finished_says_so(network_codec: DiffCCodec, photos: list[Path]) -> None:
    finisher = OscarBackbone(tiny_oscar())
    for options in ({"steps": 4}, {"guidance": 2.0}, {"sampler": "heun"}, {"score_scale": 1.2}):
        with pytest.raises(ConfigError, match="leave out steps, guidance"):
            DecodeOptions(finish=finisher, **options)  # type: ignore[arg-type]
    latents = DiffCCodec(
        Latents(network_codec.backbone.model),  # type: ignore[attr-defined]
        network_codec.config, network_codec.tables, name="latents", model_id=2,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"streams of latents are of latents.*leave out finish"):
        latents.decode(b"", height=64, width=64, options=DecodeOptions(finish=finisher))
    picture = Image.open(photos[0]).crop((0, 0, 48, 40))
    with pytest.raises(ConfigError, match='codec "oscar" makes texture itself; leave out finish'):
        codling.decode(codling.encode(picture, level=1), finish=finisher)
    with pytest.raises(ModelError, match="linear cannot finish what others have decoded"):
        codling.decode(codling.encode(picture, max_bytes=60), finish="linear")


def test_cods_picture_of_one_step_is_finished() -> None:
    """At the noise fraction that its error is like: a share of the filter's, the same for any size of picture."""
    codec, network = cod(), tiny_oscar(replace(CONFIG, noise_share=0.8))
    payload = codec.encode(image(HEIGHT, WIDTH), RateTarget())
    finisher = OscarBackbone(network)
    found = codec.decode(payload, height=HEIGHT, width=WIDTH, options=DecodeOptions(finish=finisher))
    faithful = codec.decode(payload, height=HEIGHT, width=WIDTH, options=FAITHFUL)
    assert found.shape == (1, 3, HEIGHT, WIDTH)
    with torch.inference_mode():
        assert torch.equal(found, finisher.textured(faithful, 0.02))
    assert not torch.allclose(found, faithful, atol=1e-2)
    (s,) = network.noise_of(torch.tensor([0.02]))
    assert s == 0.8 * network.denoiser.filter.noise_of(torch.tensor([0.02]))
    assert torch.allclose(network.error_of(s[None]), torch.tensor([0.02]), rtol=1e-3)
    # A network that corrects nothing leaves the picture as it was.
    torch.nn.init.zeros_(network.denoiser.last.weight)
    torch.nn.init.zeros_(network.denoiser.last.bias)
    found = codec.decode(payload, height=HEIGHT, width=WIDTH, options=DecodeOptions(finish=finisher))
    assert torch.allclose(found, faithful, atol=1e-6)


def test_the_error_that_is_expected_of_cod_xs_is_that_of_its_pictures(photos: list[Path]) -> None:
    """From its tables for DiffC, of the estimate from pure noise: within a factor of two on other photographs."""
    codec = load("cod-xs", device=CPU)
    assert isinstance(codec, CoDCodec) and codec.error is not None
    diffc = load("cod-xs", device=CPU, codec=CodecId.DIFFC)
    assert isinstance(diffc, DiffCCodec)
    assert codec.error == expected_error(diffc.tables[True])
    errors = []
    for photo in photos:
        picture = load_picture(photo).rgb[:256, :256]
        original = torch.from_numpy(to_image_array(picture))[None]
        errors.append(float((codec.faithful(codec.indices(original)[None]) - original).square().mean()))
    assert 0.5 < sum(errors) / len(errors) / codec.error < 2


def test_what_has_no_error_to_tell_is_not_finished() -> None:
    finish = DecodeOptions(finish=OscarBackbone(tiny_oscar()))
    codec = cod(None)
    payload = codec.encode(image(HEIGHT, WIDTH), RateTarget())
    with pytest.raises(ModelError, match=r"model tiny are off was not measured.*codling calibrate tiny"):
        codec.decode(payload, height=HEIGHT, width=WIDTH, options=finish)
    latent = TransformerConfig(head="ddt", channels=4, patch=2, width=16, heads=2, blocks=1, head_blocks=1)
    codec = CoDCodec(CoD(tiny_config(space="sd-vae", transformer=latent)), name="latent", model_id=0, error=0.02)
    with pytest.raises(ConfigError, match=r"latent decodes latents.*leave out finish"):
        codec.decode(b"", height=HEIGHT, width=WIDTH, options=finish)
