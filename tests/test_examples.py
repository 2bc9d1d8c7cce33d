"""The examples run, and do what they say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

NANO = Path(__file__).parent.parent / "examples" / "nano_codec.py"


@pytest.fixture(scope="module")
def nano() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nano_codec", NANO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def test_nano_codec_is_small_and_any_rate(nano: ModuleType, photos: list[Path]) -> None:
    assert len(NANO.read_text().splitlines()) < 150
    picture = np.asarray(Image.open(photos[-1]).convert("RGB").resize((384, 256)))
    long = nano.encode(picture, 600)
    assert len(long) == 600
    scores = [psnr(nano.decode(long[:size]), picture) for size in (40, 150, 600)]
    assert scores == sorted(scores)
    assert scores[-1] > 20
    assert psnr(nano.decode(nano.encode(picture, 150)), picture) == pytest.approx(scores[1], abs=0.2)


def test_nano_codec_at_odd_sizes(nano: ModuleType) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (13, 29, 3)).astype(np.uint8)
    assert nano.decode(nano.encode(picture, 60)).shape == picture.shape
