"""DiffC as a codec: bytes in, picture out, at any rate, any size, cut anywhere."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import codling
from codling.bitstream.container import Stream, pack, unpack
from codling.codecs.activity_map import Tables
from codling.codecs.backbones import DenoiserBackbone
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.calibration import calibrate
from codling.codecs.chain import Chain
from codling.codecs.cod import CoDCodec
from codling.codecs.diffc import DiffCCodec
from codling.codecs.diffc_stream import DiffCConfig, checksum, checksum_agrees
from codling.configuration import from_dict
from codling.diffusion.guidance import VelocityFunction
from codling.errors import ConfigError, FormatError, ModelError, RateError
from codling.models.denoiser import Denoiser, DenoiserConfig
from codling.models.wiener import WienerConfig, WienerFilter, fit_spectrum
from codling.weights.registry import load_codec
from codling.weights.store import Parts, save_model
from tests.conftest import noise_picture

CPU = torch.device("cpu")
FAITHFUL = DecodeOptions(steps=1)


def image_of(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture / np.float32(127.5) - 1).permute(2, 0, 1)[None]


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a.clamp(-1, 1) - b).square().mean()) / 4)


@pytest.fixture(scope="module")
def linear() -> DiffCCodec:
    """The Wiener filter of the test pictures, calibrated on a few of them."""
    images = [image_of(noise_picture(96, 128, seed=seed)) for seed in range(4)]
    model = WienerFilter(WienerConfig(knots=24))
    model.log_power.copy_(fit_spectrum([image[0] for image in images], 24))
    backbone = DenoiserBackbone(model)
    tables = {False: calibrate(backbone, images, conditional=False)}
    return DiffCCodec(backbone, DiffCConfig(threshold=8, memory=8), tables, name="linear", model_id=7)


def tiny_denoiser() -> Denoiser:
    torch.manual_seed(0)
    model = Denoiser(
        DenoiserConfig(widths=(4, 8), blocks=(1, 1), embedding=8, filter=WienerConfig(knots=24), tile=64, overlap=16)
    )
    torch.nn.init.normal_(model.last.weight, std=0.1)
    model.filter.log_power.copy_(fit_spectrum([image_of(noise_picture(96, 128))[0]], 24))
    return model


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> DiffCCodec:
    """A small random network, saved and loaded."""
    model = tiny_denoiser()
    tables = {False: calibrate(DenoiserBackbone(model), [image_of(noise_picture(64, 64))], conditional=False)}
    directory = tmp_path_factory.mktemp("models") / "tiny-denoiser"
    save_model(directory, Parts(model, error_tables=tables, diffc=DiffCConfig(memory=8, level=560)))
    codec = load_codec(directory, name="tiny-denoiser", device=CPU)
    assert isinstance(codec, DiffCCodec)
    return codec


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (64, 96), (75, 33), (130, 200)])
def test_any_size(size: tuple[int, int], linear: DiffCCodec, denoiser: DiffCCodec) -> None:
    for codec in (linear, denoiser):
        image = image_of(noise_picture(*size))
        payload = codec.encode(image, RateTarget(noise_level=500))
        decoded = codec.decode(payload, height=size[0], width=size[1], options=FAITHFUL)
        assert decoded.shape == image.shape
        assert decoded.isfinite().all()


def test_more_bytes_are_a_better_picture(linear: DiffCCodec) -> None:
    image = image_of(noise_picture(96, 128, seed=9))
    scores = []
    for level in (900, 700, 500, 300, 100):
        payload = linear.encode(image, RateTarget(noise_level=level))
        decoded = linear.decode(payload, height=96, width=128, options=FAITHFUL)
        scores.append((len(payload), psnr(decoded, image)))
    assert scores == sorted(scores)
    assert scores[-1][1] > scores[0][1] + 10


@pytest.mark.parametrize("budget", [3, 10, 57, 200, 1001])
def test_budgets_are_met_to_the_byte(budget: int, linear: DiffCCodec) -> None:
    picture = noise_picture(96, 128, seed=9)
    assert len(linear.encode(image_of(picture), RateTarget(max_bytes=budget))) == budget
    assert len(codling.encode(picture, model=linear, max_bytes=budget + 20)) == budget + 20


def test_bpp_is_of_the_file(linear: DiffCCodec) -> None:
    data = codling.encode(noise_picture(96, 128), model=linear, bpp=0.1)
    assert len(data) == int(0.1 * 96 * 128 / 8)
    assert codling.info(data).bpp <= 0.1


def test_psnr_is_met_from_above_and_not_far(linear: DiffCCodec) -> None:
    image = image_of(noise_picture(96, 128, seed=9))
    for wanted in (14.0, 20.0, 26.0):
        payload = linear.encode(image, RateTarget(psnr=wanted))
        decoded = linear.decode(payload, height=96, width=128, options=FAITHFUL)
        found = psnr((((decoded.clamp(-1, 1) + 1) * 127.5).round()) / 127.5 - 1, image)
        assert wanted <= found < wanted + 1


def test_a_stream_cut_at_any_byte_decodes(denoiser: DiffCCodec) -> None:
    picture = noise_picture(40, 56)
    data = codling.encode(picture, model=denoiser, noise_level=500)
    header = unpack(data).header_size
    for size in range(header, len(data) + 1):
        image = codling.decode(data, model=denoiser, upto_bytes=size)
        assert image.size == (56, 40)
        assert image.tobytes() == codling.decode(data[:size], model=denoiser).tobytes()
    with pytest.raises(FormatError):
        codling.decode(data[: header - 1], model=denoiser)
    with pytest.raises(ConfigError, match="header takes"):
        codling.decode(data, model=denoiser, upto_bytes=header - 1)


def test_nothing_follows_the_last_step(linear: DiffCCodec) -> None:
    payload = linear.encode(image_of(noise_picture(40, 56)), RateTarget(noise_level=700))
    linear.decode(payload, height=40, width=56, options=FAITHFUL)
    for more in (b"\0", b"more", bytes(10**7)):
        with pytest.raises(FormatError, match=f"{len(more)} bytes follow the last step"):
            linear.decode(payload + more, height=40, width=56, options=FAITHFUL)


def test_a_budget_is_worth_no_less_than_a_longer_stream_cut_there(linear: DiffCCodec) -> None:
    image = image_of(noise_picture(96, 128, seed=9))
    long = linear.encode(image, RateTarget(noise_level=300))
    used = [count for _, count in linear.walk(long, height=96, width=128)]
    assert used == sorted(used)
    assert used[-1] == len(long)
    for count in used[4:10]:
        short = linear.encode(image, RateTarget(max_bytes=count))
        cut, own = (linear.decode(p, height=96, width=128, options=FAITHFUL) for p in (long[:count], short))
        assert psnr(own, image) > psnr(cut, image) - 0.7


def test_previews_get_better(linear: DiffCCodec) -> None:
    picture = noise_picture(96, 128, seed=9)
    data = codling.encode(picture, model=linear, noise_level=200)
    errors = [np.square(np.asarray(image, float) - picture).mean() for _, image in codling.preview(data, model=linear)]
    assert len(errors) == 1 + len(linear.config.levels(200))
    assert errors[-1] < errors[0] / 10
    assert all(b < a for a, b in pairwise(errors[::4]))


def test_a_fresh_process_decodes_the_same(denoiser: DiffCCodec, tmp_path: Path) -> None:
    model = tmp_path / "m"
    save_model(model, Parts(tiny_denoiser(), error_tables=denoiser.tables, diffc=denoiser.config))
    data = codling.encode(noise_picture(75, 50), model=model, noise_level=300)
    (tmp_path / "x.roe").write_bytes(data)
    here = codling.decode(data, model=model)
    script = (
        "import sys, codling, torch; torch.set_num_threads(1);"
        f"codling.decode(open(r'{tmp_path / 'x.roe'}', 'rb').read(), model=r'{model}').save(r'{tmp_path / 'y.png'}')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    from PIL import Image

    there = np.asarray(Image.open(tmp_path / "y.png"), int)
    assert np.abs(there - np.asarray(here, int)).max() <= 1


def test_settings_travel_in_the_stream(linear: DiffCCodec) -> None:
    image = image_of(noise_picture(64, 64, seed=3))
    settings = replace(linear.config, times=(950, 800, 600, 300), threshold=-20, memory=9, bits=2)
    payload = linear.encode_with(settings, image, RateTarget(noise_level=300))
    decoded = linear.decode(payload, height=64, width=64, options=FAITHFUL)
    own = linear.decode(linear.encode(image, RateTarget(noise_level=300)), height=64, width=64, options=FAITHFUL)
    assert abs(psnr(decoded, image) - psnr(own, image)) < 2


def test_sampling_on_gives_texture_back(linear: DiffCCodec) -> None:
    """Of a Gaussian picture the mean has less energy than the picture, and a sample as much."""
    rng = np.random.default_rng(0)
    model = linear.backbone.model  # type: ignore[attr-defined]
    power = model.power(96, 128).numpy()
    from codling.rcc.spectral import from_spectrum

    image = torch.from_numpy(from_spectrum((rng.normal(size=power.shape) * np.sqrt(power)).astype(np.float32)))[None]
    payload = linear.encode(image, RateTarget(noise_level=600))
    energy = [
        float(linear.decode(payload, height=96, width=128, options=options).square().mean())
        for options in (
            FAITHFUL,
            DecodeOptions(steps=50, sampler="heun"),
            DecodeOptions(steps=50, sampler="heun", score_scale=1.3),
        )
    ]
    whole = float(image.square().mean())
    assert energy[0] < energy[2] < energy[1]
    assert energy[1] == pytest.approx(whole, rel=0.1)


class Oracle:
    """A backbone that knows the picture."""

    channels, stride, grid, conditional, gaussian, device = 3, 1, 8, False, False, CPU

    def __init__(self, image: Tensor):
        self.image = image

    def condition(self, image: Tensor) -> bytes:
        return b""

    def velocity(self, condition: bytes, *, height: int, width: int) -> VelocityFunction:
        return lambda x, t: (self.image - x) / (1 - t).view(-1, 1, 1, 1)

    def to_state(self, image: Tensor) -> Tensor:
        return image

    def to_image(self, state: Tensor) -> Tensor:
        return state

    def picture(self, chain: Chain) -> Tensor:
        return chain.image_estimate()


def test_with_an_oracle_the_rate_goes_to_zero(linear: DiffCCodec) -> None:
    """What the denoiser knows already costs nothing: after the scale of each step no message is left."""
    image = image_of(noise_picture(96, 128, seed=9))
    oracle = Oracle(image)
    tables = Tables(calibrate(oracle, [image], conditional=False).whole)  # without a map, which has a cost
    codec = DiffCCodec(oracle, linear.config, {False: tables}, name="oracle", model_id=1)
    payload = codec.encode(image, RateTarget(noise_level=300))
    steps = len(linear.config.levels(300))
    # 11 bits of settings, a bit of scale a step, a checksum every four.
    assert len(payload) <= math.ceil((11 + steps + 8 * (steps // 4)) / 8)
    decoded = codec.decode(payload, height=96, width=128, options=FAITHFUL)
    assert psnr(decoded, image) > 60
    assert len(linear.encode(image, RateTarget(noise_level=300))) > 50 * len(payload)


def test_gaussian_pictures_cost_what_theory_says(linear: DiffCCodec) -> None:
    """Rate of a Gaussian source at the noise level reached: sum of log2(1 + P / N) / 2 over what is worth coding."""
    rng = np.random.default_rng(1)
    from codling.rcc.spectral import from_spectrum, to_spectrum

    power = linear.backbone.model.power(192, 192).numpy()  # type: ignore[attr-defined]
    spectrum = (rng.normal(size=power.shape) * np.sqrt(power)).astype(np.float32)
    image = torch.from_numpy(from_spectrum(spectrum))[None]
    # Such pictures are as busy everywhere, so that a map of their activity would only cost.
    tables = {False: Tables(linear.tables[False].whole)}
    codec = DiffCCodec(linear.backbone, replace(linear.config, memory=10, grain=0.0), tables, name="gauss", model_id=1)
    for level in (700, 500):
        payload = codec.encode(image, RateTarget(noise_level=level))
        decoded = codec.decode(payload, height=192, width=192, options=FAITHFUL)
        distortion = np.square(to_spectrum(decoded[0].numpy()) - spectrum).mean()
        # Reverse water-filling: the rate of the best code with this distortion.
        low, high = 1e-6, float(power.max())
        for _ in range(60):
            water = (low * high) ** 0.5
            low, high = (water, high) if np.minimum(power, water).mean() < distortion else (low, water)
        best = np.maximum(np.log2(power / water) / 2, 0).sum()
        # A trellis of 1,024 states delivers .88 of its bits; settings, scales and checksums come on top.
        side = 11 + 9 * len(codec.config.levels(level))
        assert best < 8 * len(payload) < 1.15 * best / 0.88 + side


def test_checksums_forgive_rounding_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    estimate = rng.normal(size=(3, 64, 96)).astype(np.float32)
    drifted = estimate + rng.normal(size=estimate.shape).astype(np.float32) * 5e-4
    assert checksum_agrees(checksum(drifted), checksum(estimate))
    others = [checksum(rng.normal(size=estimate.shape).astype(np.float32)) for _ in range(400)]
    caught = sum(not checksum_agrees(other, checksum(estimate)) for other in others)
    assert caught > 380


def test_damage_is_said_by_a_checksum(linear: DiffCCodec) -> None:
    image = image_of(noise_picture(96, 128, seed=9))
    payload = linear.encode(image, RateTarget(noise_level=300))
    rng = np.random.default_rng(0)
    outcomes = []
    for place in rng.integers(12, len(payload) // 8, 24):  # behind settings and map
        damaged = bytearray(payload)
        damaged[place] ^= 1 << rng.integers(8)
        try:
            linear.decode(bytes(damaged), height=96, width=128, options=FAITHFUL)
            outcomes.append("unseen")
        except FormatError as error:
            outcomes.append("seen")
            assert "checksum" in str(error)
    assert outcomes.count("seen") >= 18


def test_damage_of_settings_and_map_is_refused_or_another_picture(linear: DiffCCodec) -> None:
    payload = linear.encode(image_of(noise_picture(96, 128, seed=9)), RateTarget(noise_level=700))
    for place, bit in product(range(12), range(8)):
        damaged = bytearray(payload)
        damaged[place] ^= 1 << bit
        try:
            decoded = linear.decode(bytes(damaged), height=96, width=128, options=FAITHFUL)
        except FormatError:
            continue
        assert decoded.isfinite().all()


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\xff" * 40, b"\x00" * 40, bytes(range(200))])
def test_random_payloads_decode_or_are_refused(payload: bytes, linear: DiffCCodec) -> None:
    try:
        image = linear.decode(payload, height=24, width=40, options=FAITHFUL)
        assert image.shape == (1, 3, 24, 40)
    except FormatError:
        pass


def test_bad_requests(linear: DiffCCodec, denoiser: DiffCCodec, tiny_codec: CoDCodec) -> None:
    picture = noise_picture(64, 64)
    with pytest.raises(RateError, match="header of this picture's file alone takes 10"):
        codling.encode(picture, model=linear, max_bytes=9)
    with pytest.raises(RateError, match="ask for 1 bytes more"):
        codling.encode(picture, model=linear, max_bytes=13)
    assert len(codling.encode(picture, model=linear, max_bytes=14)) == 14
    with pytest.raises(RateError, match="out of reach"):
        codling.encode(picture, model=linear, psnr=99.0)
    with pytest.raises(RateError, match="from 1 to 1022"):
        codling.encode(picture, model=linear, noise_level=1023)
    with pytest.raises(RateError, match="one rate target at most"):
        codling.encode(picture, model=linear, psnr=20.0, noise_level=3)
    with pytest.raises(RateError, match='codec "diffc" has any'):
        codling.encode(picture, model=tiny_codec, psnr=20.0)
    with pytest.raises(RateError, match="ask for 6 bytes more"):
        codling.encode(picture, model=tiny_codec, max_bytes=13)
    with pytest.raises(ModelError, match="decode it with the model that made it"):
        codling.decode(codling.encode(picture, model=linear, max_bytes=40), model=denoiser)
    with pytest.raises(ConfigError, match="only progressive files"):
        list(codling.preview(codling.encode(picture, model=tiny_codec), model=tiny_codec))
    with pytest.raises(ConfigError, match="unknown codec"):
        codling.load("cod-xs", codec="jpeg")
    with pytest.raises(ModelError, match="no codec cod"):
        codling.load("linear", codec="cod")


@pytest.mark.parametrize(
    "settings",
    [
        {"widths": [4, 8], "blocks": [1]},
        {"widths": [], "blocks": []},
        {"tile": 1004},
        {"overlap": 44},
        {"tile": 128, "overlap": 96},
    ],
)
def test_impossible_denoisers_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="denoiser: "):
        from_dict(DenoiserConfig, settings)


def test_unknown_streams_of_this_codec_are_refused(linear: DiffCCodec) -> None:
    data = pack(Stream(linear.codec_id, 0x424242, 8, 8, b"\x80\x00", True))
    with pytest.raises(ModelError, match="424242"):
        codling.decode(data)


def test_a_stored_stream_still_decodes_to_its_picture() -> None:
    """Pinned: if this fails, files that are out there are lost. A new embedded `linear` needs a new pair of files."""
    golden = Path(__file__).parent / "golden"
    from PIL import Image

    wanted = np.asarray(Image.open(golden / "linear.png"), int)
    found = np.asarray(codling.decode((golden / "linear.roe").read_bytes()), int)
    assert np.abs(found - wanted).max() <= 1
    assert np.abs(wanted - noise_picture(96, 128, seed=5)).mean() < 40
