"""The examples run, and do what they say."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import codling

EXAMPLES = Path(__file__).parent.parent / "examples"
NANO = EXAMPLES / "nano_codec.py"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def nano() -> ModuleType:
    return example("nano_codec")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def test_nano_codec_is_small_and_any_rate(nano: ModuleType, photos: list[Path]) -> None:
    assert len(NANO.read_text().splitlines()) < 150
    picture = np.asarray(Image.open(photos[-1]).convert("RGB").resize((384, 256)))
    long = nano.encode(picture, 600)
    assert len(long) == 600
    scores = [psnr(nano.decode(long[:size]), picture) for size in (40, 150, 600)]
    assert scores == sorted(scores)
    assert scores[-1] > 22.5
    assert psnr(nano.decode(nano.encode(picture, 150)), picture) == pytest.approx(scores[1], abs=0.2)


def test_nano_codec_at_odd_sizes(nano: ModuleType) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (13, 29, 3)).astype(np.uint8)
    assert nano.decode(nano.encode(picture, 60)).shape == picture.shape


def test_the_published_scheme_needs_more_bytes(photos: list[Path], tmp_path: Path) -> None:
    """Than codling's file, with an ideal channel; and with its real one more than that."""
    published = example("published_scheme")
    codec = codling.load("linear", device="cpu")
    Image.open(photos[0]).convert("RGB").resize((96, 64)).save(tmp_path / "x.png")
    picture = np.asarray(Image.open(tmp_path / "x.png"))
    ours = published.coded(codec, str(tmp_path / "x.png"), picture, 60)
    assert ours.bytes == 60
    assert ours.psnr == pytest.approx(psnr(ours.decoded, picture))
    ideal = published.published_curve(codec, picture, until=ours.psnr, real=False)
    sizes = [point.bytes for point in ideal]
    assert sizes == sorted(sizes)
    assert published.at(ours.psnr, ideal, picture)[0] > ours.bytes
    early = ideal[1].psnr
    real = published.published_curve(codec, picture, until=early, real=True)
    assert published.at(early, real, picture)[0] > published.at(early, ideal, picture)[0]


def test_the_best_shrunk_avif_keeps_its_budget(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrunk = example("shrunk_avif")
    monkeypatch.setattr(shrunk, "FACTORS", (2, 4))
    monkeypatch.setattr(shrunk, "QUALITIES", (0, 30))
    Image.open(photos[0]).convert("RGB").resize((192, 128)).save(tmp_path / "x.png")
    found = shrunk.files(tmp_path / "x.png", 100_000)
    assert len(found) == 4
    for budget in {file.bytes for file in found}:
        chosen = shrunk.best(found, budget)
        assert chosen.bytes <= budget
        assert chosen.psnr == max(file.psnr for file in found if file.bytes <= budget)
    assert shrunk.best(found, min(file.bytes for file in found) - 1) is None
    shorter = shrunk.files(tmp_path / "x.png", min(file.bytes for file in found))
    assert [file.bytes for file in shorter] == [min(file.bytes for file in found)]


def test_the_best_shrunk_avif_says_what_it_needs_before_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk = example("shrunk_avif")
    shrunk.check_metrics()
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    with pytest.raises(SystemExit, match=r"MS-SSIM needs pytorch-msssim: pip install 'codling\[eval\]'"):
        shrunk.check_metrics()


def test_a_shrunk_picture_too_small_for_a_metric_has_the_others(photos: list[Path], tmp_path: Path) -> None:
    shrunk = example("shrunk_avif")
    Image.open(photos[0]).convert("RGB").resize((96, 64)).save(tmp_path / "x.png")
    (setting,) = shrunk.parse_spec("avif/2:quality=30")
    size, decibel, ms_ssim, swd = shrunk.row(tmp_path / "x.png", shrunk.File(600, 25.0, setting))
    assert size == 600
    assert np.isnan(ms_ssim)
    assert np.isfinite([decibel, swd]).all()
