"""What pictures are compared with: what the encoder makes of a file, of turned, transparent and deep pictures too."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codling.codecs.cod import CoDCodec
from codling.evaluation import runner
from codling.evaluation.contenders import parse_spec
from codling.evaluation.demo import demonstrate
from codling.evaluation.metrics import psnr
from codling.evaluation.patches import patch_distances
from codling.evaluation.report import _data_url
from codling.pictures import load_picture
from tests.test_evaluation import MeanFeatures
from tests.test_metrics import photograph

TURNED = 6


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = TURNED
    Image.fromarray(photograph(64, 96)).save(path, exif=exif)


def transparent(path: Path) -> None:
    alpha = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))
    Image.fromarray(np.dstack([photograph(64, 96), alpha])).save(path)


def deep(path: Path) -> None:
    Image.fromarray(photograph(64, 96)[..., 0].astype(np.uint16) * 257).save(path)


@pytest.fixture(params=[turned, transparent, deep], ids=lambda make: make.__name__)
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A picture that Pillow's `convert("RGB")` makes something else of."""
    path = tmp_path / "a.png"
    request.param(path)
    with Image.open(path) as opened:
        assert not np.array_equal(np.asarray(opened.convert("RGB")), load_picture(path).rgb)
    return path


def test_distances_are_from_what_was_encoded(picture: Path, tmp_path: Path) -> None:
    original, decoded = load_picture(picture).rgb, tmp_path / "decoded.png"
    Image.fromarray(original).save(decoded)
    size, values = runner._measure(picture, decoded, ("psnr",))
    assert size == (original.shape[1], original.shape[0])
    assert values["psnr"] == np.inf
    assert runner.set_distances([(picture, decoded)], ("swd",)) == {"swd-set": 0}
    assert patch_distances([(picture, decoded)], size=16, features=MeanFeatures())["fid-16"] == pytest.approx(
        0, abs=1e-6
    )
    assert _data_url(picture) == _data_url(decoded)


def test_classical_codecs_are_given_the_same(picture: Path) -> None:
    (setting,) = parse_spec("jpeg:quality=97")
    assert psnr(load_picture(picture).rgb, np.asarray(setting.decode(setting.encode(picture)))) > 30


def test_the_demonstration_compares_with_it(tmp_path: Path, tiny_codec: CoDCodec) -> None:
    turned(tmp_path / "a.png")
    (shown,) = demonstrate([tmp_path / "a.png"], tiny_codec, steps=(1,))
    assert shown.original.size == shown.decoded["1 step"][0].size == (64, 96)
