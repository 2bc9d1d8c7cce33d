"""The models in the package: small, described, and good enough that a photograph is recognisable."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import codling
from codling.bitstream.container import unpack
from codling.bitstream.indices import Mode
from codling.codecs.base import Codec
from codling.evaluation.metrics import psnr
from codling.swd import swd
from codling.weights.catalogue import embedded_directory, entries

MAX_BYTES = 24_000_000


@pytest.fixture(scope="module")
def codec() -> Codec:
    return codling.load("cod-xs", device="cpu")


def test_embedded_models_are_small_and_described() -> None:
    names = [entry.name for entry in entries() if entry.source == "embedded"]
    assert "cod-xs" in names
    assert sum(p.stat().st_size for p in embedded_directory().rglob("*") if p.is_file()) < MAX_BYTES
    for name in names:
        card = (embedded_directory() / name / "README.md").read_text()
        for part in ("## Data", "## Recipe", "## Figures", "## Known failures"):
            assert part in card, f"the card of {name} lacks {part!r}"


def test_photographs_come_back(photos: list[Path], codec: Codec) -> None:
    """At most 0.035 bpp and at least 21 dB with one step: a photograph's 16 x 16 means reach some 21.5 dB."""
    for photo in photos:
        data = codling.encode(photo, model=codec)
        assert codling.info(data).bpp < 0.035
        assert unpack(data).payload[0] == Mode.CODED
        original = np.asarray(Image.open(photo).convert("RGB"))
        assert psnr(original, np.asarray(codling.decode(data, model=codec, steps=1))) > 21


def test_faithful_and_realistic(photos: list[Path], codec: Codec) -> None:
    """One step is nearer to the photograph; more steps have more texture and depend on the seed."""
    original = Image.open(photos[0]).convert("RGB").crop((100, 100, 356, 356))
    data = codling.encode(original, model=codec)
    one, many, other = (
        np.asarray(codling.decode(data, model=codec, steps=steps, seed=seed))
        for steps, seed in ((1, 0), (8, 0), (8, 1))
    )
    assert psnr(np.asarray(original), one) > psnr(np.asarray(original), many)
    texture = [np.abs(np.diff(picture.astype(float), axis=1)).mean() for picture in (one, many)]
    assert texture[1] > texture[0]
    assert not np.array_equal(many, other)


def test_cod_xs_makes_texture_in_one_step(photos: list[Path], codec: Codec) -> None:
    """Much nearer to the photographs' texture than the mean, and nearer to themselves than samples."""
    scores = []
    for photo in photos:
        original = Image.open(photo).convert("RGB").crop((100, 100, 484, 356))
        data = codling.encode(original, model=codec)
        pictures = [np.asarray(codling.decode(data, model=codec, steps=steps)) for steps in (None, 1, 8)]
        truth = np.asarray(original)
        scores.append([(psnr(truth, picture), swd(truth, picture)) for picture in pictures])
    texture, mean, sample = np.mean(scores, axis=0)
    assert mean[0] > texture[0] > sample[0]
    assert texture[1] < 0.75 * mean[1]


@pytest.mark.parametrize("model", ["cod-xs", "diffc-xs", "oscar-s"])
def test_dark_pictures_come_back_dark(model: str, photos: list[Path]) -> None:
    """Also from a model whose "nothing known" was a black picture."""
    codec, rate = codling.load(model, device="cpu"), {"max_bytes": 400} if model == "diffc-xs" else {}
    photo = np.asarray(Image.open(photos[0]).convert("RGB").crop((100, 100, 484, 356)))
    for brightness, least in ((0.3, 27.0), (0.1, 33.0)):
        dark = np.round(photo * brightness).astype(np.uint8)
        assert psnr(dark, np.asarray(codling.decode(codling.encode(dark, model=codec, **rate)))) > least
    black = codling.decode(codling.encode(np.zeros((256, 256, 3), np.uint8), model=codec, **rate))
    assert np.asarray(black).mean() < 10


@pytest.mark.parametrize(("model", "least"), [("linear", 19.5), ("diffc-xs", 20.0)])
def test_photographs_come_back_from_400_bytes(model: str, least: float, photos: list[Path]) -> None:
    codec, scores = codling.load(model, device="cpu"), []
    for photo in photos:
        data = codling.encode(photo, model=codec, max_bytes=400)
        assert len(data) == 400
        original = np.asarray(Image.open(photo).convert("RGB"))
        scores.append(psnr(original, np.asarray(codling.decode(data))))
    assert np.mean(scores) > least


def test_a_rate_asks_for_the_progressive_model(photos: list[Path]) -> None:
    picture = Image.open(photos[0]).convert("RGB").crop((0, 0, 150, 133))
    data = codling.encode(picture, max_bytes=200)
    assert len(data) == 200
    assert codling.info(data).model == "diffc-xs"
    assert codling.info(data).progressive
    assert codling.decode(data[:77]).size == (150, 133)


def test_the_default_model_and_the_model_a_file_names(photos: list[Path]) -> None:
    picture = Image.open(photos[0]).convert("RGB").crop((0, 0, 50, 33))
    data = codling.encode(picture)
    assert codling.info(data).model == "cod-xs"
    assert codling.decode(data).size == (50, 33)


def test_levels_of_oscar_s_rise_in_bytes_and_quality(photos: list[Path]) -> None:
    original, sizes, scores = Image.open(photos[0]).convert("RGB"), [], []
    for level in (1, 3, 5, 7):
        data = codling.encode(original, level=level)
        assert codling.info(data).model == "oscar-s"
        sizes.append(len(data))
        scores.append(psnr(np.asarray(original), np.asarray(codling.decode(data))))
    assert sizes == sorted(sizes)
    assert scores == sorted(scores)
    assert sizes[0] < 420
    assert scores[0] > 19
    within = codling.encode(original, model="oscar-s", max_bytes=sizes[2])
    assert len(within) == sizes[2]


def test_oscar_s_told_by_the_channel_coder_is_as_near_as_by_tokens(photos: list[Path]) -> None:
    """Nearer where there are many bytes; where there are few, what predicts tokens makes them cheaper for what they
    say. `least` is how near at least, in dB, whatever tokens are."""
    told, files = codling.load("oscar-s", codec="diffc", device="cpu"), {}
    for level, nearer, least in ((1, -0.2, 20.3), (4, -0.3, 23.2), (7, 0.4, 27.6)):
        scores = []
        for photo in photos:
            original = np.asarray(Image.open(photo).convert("RGB"))
            tokens = codling.encode(original, level=level)
            data = codling.encode(original, model=told, max_bytes=len(tokens))
            assert len(data) == len(tokens)
            assert codling.info(data).progressive
            scores.append([psnr(original, np.asarray(codling.decode(coded))) for coded in (tokens, data)])
            files[photo] = original, data, scores[-1][0]
        by_tokens, by_coder = np.mean(scores, axis=0)
        assert by_coder > by_tokens + nearer
        assert by_coder > least
    # A file that ends early is still restored: of the last level, the first picture.
    original, data, score = files[photos[0]]
    assert psnr(original, np.asarray(codling.decode(data[: len(data) // 4]))) > score - 3


def test_oscar_s_makes_texture_of_what_the_channel_coder_tells(photos: list[Path]) -> None:
    """Of the stream of the linear model, which is smooth where nothing was told."""
    original = np.asarray(Image.open(photos[0]).convert("RGB"))
    told, scores = codling.load("oscar-s", codec="diffc", device="cpu"), dict[int, float]()
    for size in (350, 1500, 6000):
        data = codling.encode(original, model=told, max_bytes=size)
        assert len(data) == size
        assert codling.info(data).progressive
        smooth = np.asarray(codling.decode(codling.encode(original, model="linear", max_bytes=size)))
        restored = np.asarray(codling.decode(data))
        assert swd(original, restored) < 0.85 * swd(original, smooth)
        assert psnr(original, restored) > psnr(original, smooth) - 1.6
        scores[size] = psnr(original, restored)
    # The beginning of a long file is about as good as a file of so many bytes.
    early = np.asarray(codling.decode(data[:1500]))
    assert psnr(original, early) > scores[1500] - 0.3


def test_oscar_s_finishes_what_another_model_has_decoded(photos: list[Path]) -> None:
    """With texture that the faithful picture lacks, and nearer to the photograph than twenty steps of sampling."""
    original = np.asarray(Image.open(photos[0]).convert("RGB"))
    data = codling.encode(original, max_bytes=800)
    faithful, finished, sampled = (
        np.asarray(codling.decode(data, **options))  # type: ignore[arg-type]
        for options in ({}, {"finish": "oscar-s"}, {"steps": 20})
    )
    assert swd(original, finished) < 0.7 * swd(original, faithful)
    assert psnr(original, finished) > psnr(original, sampled)


def test_oscar_s_finishes_what_cod_xs_has_decoded(photos: list[Path]) -> None:
    """One step more gives what one step lacks in texture, nearer to the photograph than four steps of its own, and on
    average than its own finisher, which has more texture."""
    nearer = []
    for photo in photos:
        original = np.asarray(Image.open(photo).convert("RGB"))
        data = codling.encode(original)
        faithful, finished, sampled, default = (
            np.asarray(codling.decode(data, **options))  # type: ignore[arg-type]
            for options in ({"steps": 1}, {"finish": "oscar-s"}, {"steps": 4}, {})
        )
        assert swd(original, finished) < 0.8 * swd(original, faithful)
        assert psnr(original, finished) > psnr(original, sampled)
        nearer.append(psnr(original, finished) - psnr(original, default))
    assert np.mean(nearer) > 0
