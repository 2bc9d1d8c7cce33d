"""CoD as a codec: any size, the same bytes twice, and decoding in another process from the bytes alone."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import codling
from codling.bitstream.container import unpack
from codling.bitstream.prng import gaussians
from codling.codecs.base import DecodeOptions
from codling.codecs.cod import CoDCodec
from codling.codecs.tiling import assemble, blend, plan_tiles
from codling.errors import ConfigError, ModelError
from codling.models.cod import CoD
from codling.models.condition_codec import STRIDES, ConditionCodec, ConditionCodecConfig
from codling.weights.registry import load_codec
from tests.conftest import noise_picture, tiny_config, tiny_model

SIZES = [(1, 1), (1, 17), (3, 200), (200, 3), (64, 64), (65, 257), (150, 130)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size(height: int, width: int, tiny_codec: CoDCodec) -> None:
    data = codling.encode(noise_picture(height, width), model=tiny_codec)
    image = codling.decode(data, model=tiny_codec)
    assert image.size == (width, height)
    assert codling.info(data).bpp == 8 * len(data) / (width * height)


def test_very_long_pictures(tiny_codec: CoDCodec) -> None:
    data = codling.encode(noise_picture(3, 2000), model=tiny_codec)
    assert codling.decode(data, model=tiny_codec, steps=1).size == (2000, 3)


def test_encoding_and_decoding_are_deterministic(tiny_codec: CoDCodec) -> None:
    picture = noise_picture(70, 90)
    data = codling.encode(picture, model=tiny_codec)
    assert codling.encode(picture, model=tiny_codec) == data
    first, second = (np.asarray(codling.decode(data, model=tiny_codec, seed=3)) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, np.asarray(codling.decode(data, model=tiny_codec, seed=4)))


DECODE = """
import sys, numpy as np, torch, codling
torch.set_num_threads(2)
data = open(sys.argv[1], "rb").read()
np.save(sys.argv[3], np.asarray(codling.decode(data, model=sys.argv[2], steps=4, guidance=2.0, device="cpu")))
"""


def test_a_fresh_process_decodes_the_bytes_with_another_number_of_threads(tmp_path: Path, tiny_directory: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        codec = load_codec(tiny_directory, name="tiny", device=torch.device("cpu"))
        data = codling.encode(noise_picture(75, 140), model=codec)
        here = np.asarray(codling.decode(data, model=codec, steps=4, guidance=2.0)).astype(int)
    finally:
        torch.set_num_threads(threads)
    (tmp_path / "x.roe").write_bytes(data)
    command = [sys.executable, "-c", DECODE, str(tmp_path / "x.roe"), str(tiny_directory), str(tmp_path / "x.npy")]
    subprocess.run(command, check=True)
    assert np.abs(np.load(tmp_path / "x.npy").astype(int) - here).max() <= 1


def test_bfloat16_decodes_the_same_bytes(tiny_directory: Path) -> None:
    """Law 4: precision changes the picture by rounding, never the parsing."""
    codec = load_codec(tiny_directory, name="tiny", device=torch.device("cpu"))
    data = codling.encode(noise_picture(64, 64), model=codec)
    exact = np.asarray(codling.decode(data, model=codec, steps=1)).astype(float)
    codec.precision = torch.bfloat16
    rough = np.asarray(codling.decode(data, model=codec, steps=1)).astype(float)
    assert np.abs(exact - rough).mean() < 3
    assert not np.array_equal(exact, rough)


def test_one_step_is_the_network_at_t_0(tiny_codec: CoDCodec) -> None:
    image = torch.from_numpy(noise_picture(32, 48).transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)
    indices = tiny_codec.indices(image)[None]
    out = tiny_codec.sample(indices, DecodeOptions(steps=1, guidance=1.0, seed=9))
    noise = torch.from_numpy(gaussians(3 * 32 * 48, seed=9)).view(1, 3, 32, 48)
    with torch.no_grad():
        condition = tiny_codec.model.condition_codec.decode(indices)
        expected = noise + tiny_codec.model.velocity(noise, torch.zeros(1), condition)
    torch.testing.assert_close(out, expected)


def test_a_preconditioned_network_that_says_nothing_ignores_the_noise_at_t_0() -> None:
    model = tiny_model()
    torch.nn.init.zeros_(model.transformer.head.out.weight)
    torch.nn.init.zeros_(model.transformer.head.out.bias)
    noise, condition = torch.randn(1, 3, 32, 32), torch.randn(1, 16, 2, 2)
    with torch.no_grad():
        assert (noise + model.velocity(noise, torch.zeros(1), condition)).abs().max() < 1e-6


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("stem_stride", [1, 2, 4])
@pytest.mark.parametrize("shortcut", [False, True])
def test_condition_codec_at_every_stride(stride: int, stem_stride: int, shortcut: bool) -> None:
    settings = {"stride": stride, "stem_stride": stem_stride, "shortcut": shortcut}
    small = {"codebook_size": 5, "codebook_width": 3, "encoder_width": 4, "decoder_width": 4, "groups": 2}
    if stem_stride * 2 > stride or stride // stem_stride > 64:
        with pytest.raises(ConfigError, match="stem_stride"):
            ConditionCodecConfig(**settings, **small)
        return
    codec = ConditionCodec(ConditionCodecConfig(**settings, **small))
    height, width = max(stride, 16), 2 * max(stride, 16)
    with torch.no_grad():
        indices = codec.encode(torch.rand(1, 3, height, width))
        assert indices.shape == (1, height // stride, width // stride)
        assert codec.decode(indices).shape == (1, 4, height // 16, width // 16)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (160, 224), (64, 1024)])
def test_tiles_cover_and_blend_to_the_identity(height: int, width: int) -> None:
    tiles = plan_tiles(height=height, width=width, tile=64, overlap=32)
    x = torch.randn(1, 3, height, width)
    same = blend(lambda pieces, numbers: pieces, x, tiles, overlap=32, stride=1)
    torch.testing.assert_close(same, x)
    numbers = torch.arange(height // 16 * (width // 16)).view(height // 16, width // 16)
    pieces = [tile.cut(numbers[None], 16)[0] for tile in tiles]
    assert torch.equal(assemble(pieces, tiles, height=height, width=width, stride=16), numbers)


def test_blending_has_no_seams() -> None:
    """Where neighbouring tiles disagree, the result passes smoothly from one to the other."""
    tiles = plan_tiles(height=64, width=160, tile=64, overlap=32)
    out = blend(
        lambda p, n: torch.stack([torch.full((3, 64, 64), float(i)) for i in n]),
        torch.zeros(1, 3, 64, 160),
        tiles,
        overlap=32,
        stride=1,
    )
    steps = out[0, 0, 0].diff()
    assert float(steps.min()) >= -1e-6
    assert float(steps.max()) < 2 / 32 + 0.01


def test_latent_models_code_through_their_autoencoder() -> None:
    class Shrinking(torch.nn.Module):
        channels, stride = 4, 8

        def encode(self, image: torch.Tensor) -> torch.Tensor:
            raise AssertionError("CoD's encoder needs no latent")

        def decode(self, state: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(state[:, :3], scale_factor=8)

    transformer = tiny_config().transformer
    latent = {"head": "ddt", "channels": 4, "patch": 2}
    config = tiny_config(space="sd-vae", transformer=type(transformer)(**{**transformer.__dict__, **latent}))
    codec = CoDCodec(tiny_model(config), name="latent", model_id=5, autoencoder=Shrinking())
    data = codling.encode(noise_picture(50, 100), model=codec)
    assert codling.decode(data, model=codec).size == (100, 50)


def test_wrong_model_is_named(tiny_codec: CoDCodec, tiny_directory: Path) -> None:
    data = codling.encode(noise_picture(20, 20), model=tiny_codec)
    other = CoDCodec(CoD(tiny_config()), name="other", model_id=0x123456)
    with pytest.raises(ModelError, match=f"{unpack(data).model_id:06x}.*123456"):
        codling.decode(data, model=other)
    with pytest.raises(ModelError, match=f"model {unpack(data).model_id:06x}, which is not here"):
        codling.decode(data)
    assert isinstance(codling.decode(data, model=tiny_directory), Image.Image)


def test_bad_options(tiny_codec: CoDCodec) -> None:
    data = codling.encode(noise_picture(20, 20), model=tiny_codec)
    for options, message in [
        ({"steps": 0}, "steps must be"),
        ({"guidance": -1.0}, "guidance must be"),
        ({"seed": -1}, "seed must be"),
        ({"sampler": "eular"}, "did you mean euler"),
    ]:
        with pytest.raises(ConfigError, match=message):
            codling.decode(data, model=tiny_codec, **options)


def test_nothing_is_warned_of_an_ordinary_picture(tiny_codec: CoDCodec) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codling.encode(noise_picture(20, 20), model=tiny_codec)
