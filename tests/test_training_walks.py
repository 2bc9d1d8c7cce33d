"""Training on walks: they go where DiffC's encoder goes, and a batch of them has one loss however it is shared."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codling.bitstream.container import CodecId
from codling.codecs.activity_map import Tables, prior_power
from codling.codecs.base import RateTarget
from codling.codecs.chain import Chain
from codling.codecs.diffc import DiffCCodec
from codling.codecs.diffc_encoder import Encoder
from codling.diffusion.posterior import signal_share
from codling.errors import ConfigError
from codling.models.denoiser import DenoiserConfig
from codling.models.wiener import WienerConfig
from codling.pictures import load_picture, to_image_array
from codling.rcc.plan import LEVELS, Q, scaled
from codling.rcc.spectral import from_spectrum
from codling.training.denoiser_run import DenoiserRun
from codling.training.loop import train
from codling.training.recipes import DenoiserTraining
from codling.training.walks import Jumps, Walk, Walks
from codling.weights.registry import load
from tests.conftest import noise_picture
from tests.training import CPU

FINAL = 560


@pytest.fixture(scope="module")
def linear() -> DiffCCodec:
    codec = load("linear", device=CPU, codec=CodecId.DIFFC)
    assert isinstance(codec, DiffCCodec)
    return codec


@pytest.fixture(scope="module")
def image(photos: list[Path]) -> np.ndarray:
    return to_image_array(load_picture(photos[0]).rgb)[:, :256, :320]


def walk(linear: DiffCCodec, image: np.ndarray, *, code: int = 2, seed: int = 0) -> Walk:
    random = np.random.default_rng(seed)
    gaussian, tables = linear.backbone.gaussian, linear.tables[False]
    return Walk(image, tables, linear.config, gaussian=gaussian, final=FINAL, code=code, random=random)


def test_who_knows_the_picture_walks_along_its_noisy_states(linear: DiffCCodec, image: np.ndarray) -> None:
    """With x as the estimate every coded band is sqrt(a) x + sqrt(1 - a) n at its own level, n standard normal."""
    walked = walk(linear, image)
    chain = walked.chain
    while walked.left:
        chain.estimate = image
        walked.step()
    assert chain.level == FINAL
    source = chain.layout.coefficients(image)
    for level in np.unique(chain.known)[:-1]:
        here = chain.layout.spread(chain.known == level).reshape(source.shape) > 0
        a = signal_share(level / LEVELS)
        noise = ((chain.state - np.sqrt(a) * source) / np.sqrt(1 - a))[here]
        slack = 5 / np.sqrt(len(noise))
        assert abs(noise.mean()) < slack
        assert abs(noise.var() - 1) < 2 * slack


@pytest.mark.parametrize("code", [0, 2])
def test_a_walk_goes_where_the_encoder_goes(linear: DiffCCodec, image: np.ndarray, code: int) -> None:
    """The same plan at every step, but for what the randomness of the channel changes in the scales."""
    encoder = Encoder(linear, linear.config, torch.from_numpy(image)[None])
    if not code:
        bare = DiffCCodec(linear.backbone, linear.config, {False: without_maps(linear)}, name="bare", model_id=0)
        encoder = Encoder(bare, linear.config, torch.from_numpy(image)[None])
    encoder.to_level(FINAL)
    coded, walked = encoder.now.chain, walk(linear, image, code=code)
    assert np.array_equal(walked.chain.colours, coded.colours)
    while walked.left:
        walked.step()
    assert walked.chain.known.shape == coded.known.shape
    weight = np.broadcast_to(coded.layout.counts, coded.known.shape)
    same = (walked.chain.known == coded.known) * weight
    assert same.sum() > 0.97 * weight.sum()
    # And tells the decoder as much of the picture.
    errors = [np.square(chain.estimate - encoder.source).mean() for chain in (coded, walked.chain)]
    assert errors[1] == pytest.approx(errors[0], rel=0.1)
    assert errors[0] < 0.2 * np.square(encoder.source).mean()


def expected_error(chain: Chain) -> float:
    """Of the estimate, by the table: mean squared error a sample."""
    errors = 2.0 ** (scaled(chain.table.at(chain.known), chain.colours[:, None]) / Q)
    return float((errors * chain.layout.counts).sum() / chain.state.size)


def test_estimates_err_as_expected(linear: DiffCCodec, image: np.ndarray) -> None:
    """Of pictures drawn from the tables: after every step the mean squared error is what the chain expects."""
    errors, expected = [], []
    for seed in range(6):
        random = np.random.default_rng(seed)
        power = prior_power(linear.tables[False].whole, *image.shape[1:])
        drawn = from_spectrum((np.sqrt(power) * random.standard_normal(power.shape)).astype(np.float32))
        walked = walk(linear, drawn, code=0, seed=seed)
        source = walked.chain.layout.coefficients(drawn)
        while walked.left:
            walked.step()
            errors.append(np.square(walked.chain.estimate - source).mean())
            expected.append(expected_error(walked.chain))
    means = [np.mean(np.reshape(values, (6, -1)), 0) for values in (errors, expected)]
    assert np.allclose(*means, rtol=0.06)
    assert (np.diff(means[1]) < 0).all()


def test_jumps_are_drawn_by_their_numbers_and_say_their_noise(image: np.ndarray) -> None:
    jumps, images = (
        Jumps.of("linear", device=CPU),
        torch.from_numpy(image[None, :, :96, :96].copy()).repeat(24, 1, 1, 1),
    )
    numbers = [(1, 2, place) for place in range(24)]
    drawn = jumps.draw(images, numbers)
    for part, again in zip(drawn, jumps.draw(images[:1], numbers[5:6]), strict=True):
        assert torch.equal(part[5], again[0])
    state, coarse, noise = drawn
    errors = (coarse - images).square().mean((1, 2, 3))
    assert float(torch.corrcoef(torch.stack([errors.log(), noise.log()]))[0, 1]) > 0.9
    # What is left of a state without its picture is noise of that size, but where frequencies say less than it.
    rest = state - (1 - noise.view(-1, 1, 1, 1)) * images
    size = rest.square().mean((1, 2, 3)).sqrt() / noise
    assert bool((size > 0.95).all())
    assert bool((size < 1.2).all())


def test_jumps_of_a_denoiser_end_where_its_streams_end(image: np.ndarray) -> None:
    """One evaluation a step serves all, each walk as if alone; at its end a walk knows as much as a stream tells."""
    jumps, images = Jumps.of("diffc-xs", device=CPU), torch.from_numpy(image[None, :, :96, :96].copy())
    numbers = [(1, 2, place) for place in range(6)]
    state, coarse, noise = jumps.draw(images.repeat(6, 1, 1, 1), numbers)
    for part, alone in zip((state, coarse, noise), jumps.draw(images, numbers[4:5]), strict=True):
        assert torch.allclose(part[4], alone[0], atol=1e-3)
    codec = load("diffc-xs", device=CPU, codec=CodecId.DIFFC)
    assert isinstance(codec, DiffCCodec)
    for row in (int(noise.argmin()), int(noise.argmax())):
        payload = codec.encode(images, RateTarget(noise_level=round(float(noise[row]) * LEVELS)))
        *_, (chain, _) = codec.walk(payload, height=96, width=96)
        wanted = (chain.image_estimate() - images).square().mean()
        assert float((coarse[row] - images).square().mean()) == pytest.approx(float(wanted), rel=0.25)


def without_maps(codec: DiffCCodec) -> Tables:
    return Tables(codec.tables[False].whole)


def tiny(pictures: Path, **changes: object) -> DenoiserTraining:
    model = DenoiserConfig(
        widths=(4, 8), blocks=(1, 1), embedding=8, filter=WienerConfig(knots=16), tile=64, overlap=16
    )
    settings = {"model": model, "data": str(pictures), "crop": 64, "batch": 4, "steps": 4, "warmup": 2, "log_every": 2}
    return DenoiserTraining(**{**settings, "checkpoint_every": 2, "walk_share": 0.5, **changes})  # type: ignore[arg-type]


def test_a_run_of_walks_resumes_to_the_same_weights(pictures: Path, tmp_path: Path) -> None:
    config = tiny(pictures)
    whole = train(config, tmp_path / "whole", device=CPU, report=lambda _: None)
    train(config, tmp_path / "parts", device=CPU, max_minutes=0, report=lambda _: None)
    resumed = train(config, tmp_path / "parts", device=CPU, report=lambda _: None)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_batch_has_one_loss_however_it_is_shared(pictures: Path) -> None:
    image = torch.from_numpy(np.stack([to_image_array(noise_picture(64, 64, seed=n)) for n in range(4)]))
    run = DenoiserRun(tiny(pictures, precision="float32"), CPU)
    torch.nn.init.normal_(run.model.last.weight, std=0.1)
    whole = float(run.loss(image)[0].detach())
    shares = []
    for places in (range(2), range(2, 4)):
        run.places = places
        shares.append(float(run.loss(image[list(places)])[0].detach()))
    assert np.mean(shares) == pytest.approx(whole, rel=1e-4)
    run.places, run.step = range(4), 1
    assert float(run.loss(image)[0].detach()) != whole


def test_every_state_of_a_walk_has_a_gradient(pictures: Path) -> None:
    """And it goes through the estimate that the loss is about, not through the walk."""
    run = DenoiserRun(tiny(pictures, walk_share=1.0, precision="float32"), CPU)
    image = torch.from_numpy(np.stack([to_image_array(noise_picture(64, 64, seed=n)) for n in range(4)]))
    before = run.model.last.weight.grad
    loss, terms = run.loss(image)
    loss.backward()
    assert before is None
    assert float(run.model.last.weight.grad.abs().max()) > 0
    assert not terms["error of the filter"].requires_grad


def test_walks_need_a_denoiser_of_pixels(pictures: Path) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        tiny(pictures, walk_share=1.5)
    with pytest.raises(ConfigError, match="use linear"):
        Walks.of("cod-xs")
