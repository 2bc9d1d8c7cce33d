"""OSCAR told by DiffC's channel coder: the stream of a linear model, restored in one step."""

from pathlib import Path

import pytest
import torch

from codling.bitstream.container import CodecId
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.diffc import DiffCCodec
from codling.codecs.oscar_pixel import OscarBackbone, restored
from codling.codecs.tiling import pad_to_grid
from codling.errors import ConfigError, RateError
from codling.models.oscar import Oscar
from codling.pictures import load_picture, to_image_array
from codling.weights.registry import load
from tests.tiny_oscar import CPU, image, tiny_oscar

HEIGHT, WIDTH = 75, 101


@pytest.fixture(scope="module")
def linear() -> DiffCCodec:
    codec = load("linear", device=CPU, codec=CodecId.DIFFC)
    assert isinstance(codec, DiffCCodec)
    return codec


def oscar(linear: DiffCCodec, network: Oscar) -> DiffCCodec:
    """With the linear model's settings and tables."""
    return DiffCCodec(OscarBackbone(network), linear.config, linear.tables, name="tiny", model_id=1)


def decoded(codec: DiffCCodec, payload: bytes) -> torch.Tensor:
    return codec.decode(payload, height=HEIGHT, width=WIDTH, options=DecodeOptions())


def test_the_stream_is_that_of_the_linear_model_and_the_network_restores_it(linear: DiffCCodec) -> None:
    network = tiny_oscar()
    codec, picture = oscar(linear, network), image(HEIGHT, WIDTH)
    payload = codec.encode(picture, RateTarget(max_bytes=300))
    assert len(payload) == 300
    assert payload == linear.encode(picture, RateTarget(max_bytes=300))
    *_, (chain, _) = codec.walk(payload, height=HEIGHT, width=WIDTH)
    coarse, grid = decoded(linear, payload), network.config.grid
    state = chain.flow_state(grain=1.0, empty=False)
    s = torch.tensor(chain.level / 1024)
    with torch.inference_mode():
        wanted = restored(network, pad_to_grid(state, grid), pad_to_grid(coarse, grid), s)[..., :HEIGHT, :WIDTH]
    found = decoded(codec, payload)
    assert found.shape == (1, 3, HEIGHT, WIDTH)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, coarse, atol=1e-2)


def test_a_network_that_corrects_nothing_leaves_the_linear_picture(linear: DiffCCodec) -> None:
    network = tiny_oscar()
    torch.nn.init.zeros_(network.denoiser.last.weight)
    torch.nn.init.zeros_(network.denoiser.last.bias)
    payload = linear.encode(image(HEIGHT, WIDTH), RateTarget(max_bytes=150))
    assert torch.allclose(decoded(oscar(linear, network), payload), decoded(linear, payload), atol=1e-6)


def test_the_more_bytes_the_less_noise_is_the_network_told(linear: DiffCCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    restore = Oscar.restore

    def noted(self: Oscar, state: torch.Tensor, coarse: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
        told.append(float(noise_level.max()))
        return restore(self, state, coarse, noise_level)

    monkeypatch.setattr(Oscar, "restore", noted)
    codec = oscar(linear, tiny_oscar())
    payload = codec.encode(image(HEIGHT, WIDTH), RateTarget(max_bytes=400))
    for end in (2, 60, 200, 400):
        decoded(codec, payload[:end])
    # Several tiles are told the same.
    levels = list(dict.fromkeys(told))
    assert levels == sorted(levels, reverse=True)
    assert len(levels) >= 3


def test_one_step_is_all_there_is(linear: DiffCCodec) -> None:
    codec = oscar(linear, tiny_oscar())
    payload = codec.encode(image(HEIGHT, WIDTH), RateTarget(max_bytes=100))
    for options in (DecodeOptions(steps=4), DecodeOptions(score_scale=1.2)):
        with pytest.raises(ConfigError, match="in one step"):
            codec.decode(payload, height=HEIGHT, width=WIDTH, options=options)
    with pytest.raises(RateError, match="no levels"):
        codec.encode(image(HEIGHT, WIDTH), RateTarget(level=2))


def test_a_wanted_psnr_is_that_of_the_restored_picture(linear: DiffCCodec, photos: list[Path]) -> None:
    network = tiny_oscar()
    # Random corrections as they are would only harm.
    for parameter in network.denoiser.last.parameters():
        parameter.data.mul_(0.02)
    codec = oscar(linear, network)
    picture = torch.from_numpy(to_image_array(load_picture(photos[0]).rgb))[None, :, :HEIGHT, :WIDTH]

    def psnr(payload: bytes) -> float:
        error = (decoded(codec, payload).clamp(-1, 1) - picture).square().mean()
        return float(10 * torch.log10(4 / error))

    wanted = psnr(codec.encode(picture, RateTarget(max_bytes=300)))
    payload = codec.encode(picture, RateTarget(psnr=wanted - 0.3))
    # Of 8 bits, not of floats.
    assert psnr(payload) > wanted - 0.35
    assert len(payload) < 310


def test_what_is_before_the_first_step_is_left_to_the_linear_model(linear: DiffCCodec) -> None:
    """The network was trained on no such noise."""
    codec, picture = oscar(linear, tiny_oscar()), image(HEIGHT, WIDTH)
    first = linear.config.times[0]
    for noise_level, same in ((first + 20, True), (first, False)):
        payload = linear.encode(picture, RateTarget(noise_level=noise_level))
        assert torch.allclose(decoded(codec, payload), decoded(linear, payload), atol=1e-3) == same
    assert torch.equal(decoded(codec, payload[:1]), decoded(linear, payload[:1]))
