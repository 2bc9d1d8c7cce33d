"""Who is compared in `codling eval`: specifications, and what settings of them have in common."""

import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codling import api
from codling.errors import ConfigError, ModelError
from codling.evaluation import contenders
from codling.evaluation.contenders import Setting, parse_spec, parse_specs
from codling.evaluation.runner import run
from codling.weights.store import Parts, save_model
from tests.test_metrics import photograph
from tests.tiny_oscar import tiny_oscar


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("avfi:quality=1", "did you mean .*avif"),
        ("webp:qualty=1", "KEY in quality"),
        ("webp:quality=high", "cannot be 'high'"),
        ("webp/0:quality=1", "1 to 128"),
        ("webp:quality", "KEY=VALUE"),
        ("webp:speed=4", "KEY in quality, method, got 'speed=4'"),
        ("jpeg:effort=9", "KEY in quality, got 'effort=9'"),
        ("linear:bytes=250:bytes=800", "bytes is given twice; .* bytes=VALUE,VALUE"),
    ],
)
def test_bad_specifications(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_spec(spec)


def test_specifications_span_the_product_of_their_values() -> None:
    labels = [setting.label for setting in parse_spec("avif/2:quality=0,9:speed=4,6")]
    assert labels == [f"avif/2:quality={q}:speed={s}" for q in (0, 9) for s in (4, 6)]


class ZooModel:
    """Stands in for a CompressAI model: four bits a sample, deflated."""

    def __init__(self, quality: int, pretrained: bool):
        if not 1 <= quality <= 8 or not pretrained:
            raise ValueError(f"no weights of quality {quality}")
        self.ready = False

    def eval(self) -> None:
        pass

    def update(self, force: bool) -> None:
        self.ready = force

    def compress(self, x: torch.Tensor) -> dict[str, object]:
        assert self.ready
        assert x.shape[-1] % 64 == x.shape[-2] % 64 == 0
        samples = (x * 15).round().to(torch.uint8).numpy()
        return {"strings": [[zlib.compress(samples.tobytes())], [b"side"]], "shape": torch.Size(x.shape[-2:])}

    def decompress(self, strings: list[list[bytes]], shape: tuple[int, int]) -> dict[str, torch.Tensor]:
        assert strings[1] == [b"side"]
        samples = np.frombuffer(zlib.decompress(strings[0][0]), np.uint8).reshape(1, 3, *shape)
        return {"x_hat": torch.from_numpy(samples / np.float32(15))}


def test_compressai_models_are_contenders_where_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pip install compressai"):
        parse_spec("compressai-toy:quality=1")
    zoo = ModuleType("compressai.zoo")
    zoo.image_models = {"toy": ZooModel}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "compressai", ModuleType("compressai"))
    monkeypatch.setitem(sys.modules, "compressai.zoo", zoo)
    (setting,) = parse_spec("compressai-toy:quality=3")
    picture = photograph(70, 90)
    Image.fromarray(picture).save(tmp_path / "a.png")
    decoded = np.asarray(setting.decode(setting.encode(tmp_path / "a.png")), int)
    assert decoded.shape == picture.shape
    assert np.abs(decoded - picture).max() <= 9
    with pytest.raises(ConfigError, match="compressai-toy at quality 9 cannot be had"):
        parse_spec("compressai-toy:quality=9")[0].encode(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="unknown codec"):
        parse_spec("compressai-toys")


def test_models_of_any_rate_are_one_curve(tmp_path: Path) -> None:
    settings = parse_spec("linear:bytes=60,90:steps=1,5")
    assert [s.curve for s in settings] == ["linear:steps=1", "linear:steps=5"] * 2
    assert len({s.folder for s in settings}) == 4
    Image.fromarray(photograph(70, 90)).save(tmp_path / "a.png")
    data = settings[0].encode(tmp_path / "a.png")
    assert len(data) == 60
    assert settings[0].decode(data).size == (90, 70)


def test_who_finishes_is_part_of_a_setting(tmp_path: Path) -> None:
    """Another finisher is another picture, so nothing that was measured with the first is taken for it."""
    network = tiny_oscar()
    for name in ("o0", "o1"):
        save_model(tmp_path / name, Parts(network))
        network.denoiser.last.weight.data.mul_(2)
    spec = f"linear:bytes=90:finish={tmp_path / 'o0'},{tmp_path / 'o1'}"
    plain, (one, other) = parse_spec("linear:bytes=90")[0], parse_spec(spec)
    assert len({setting.folder for setting in (plain, one, other)}) == 3
    assert len({setting.fingerprint() for setting in (plain, one, other)}) == 3
    Image.fromarray(photograph(70, 90)).save(tmp_path / "a.png")
    data = one.encode(tmp_path / "a.png")
    assert data == plain.encode(tmp_path / "a.png")
    pictures = [np.asarray(setting.decode(data)) for setting in (plain, one, other)]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])


def test_settings_that_differ_for_the_decoder_alone_share_their_files(tiny_directory: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(photograph(70, 90)).save(picture)
    first, second = parse_spec(f"{tiny_directory}:steps=1,2")
    assert first.encoding == second.encoding == parse_spec(str(tiny_directory))[0]
    (other,) = parse_spec("linear:bytes=90:steps=2:seed=3:finish=oscar-s")
    assert other.encoding == parse_spec("linear:bytes=90")[0]

    def rows(*settings: Setting) -> list[dict[str, Any]]:
        return run([picture], list(settings), tmp_path / "out", metrics=("psnr",), jobs=1, report=lambda _: None).rows

    one, two = rows(first, second)
    (file,) = (tmp_path / "out" / "files").glob("*/*")
    written = file.stat().st_mtime_ns
    # Seconds would differ if it had been encoded twice.
    assert (one["bytes"], one["encode_seconds"]) == (two["bytes"], two["encode_seconds"])
    assert one["metrics"] != two["metrics"]
    # Another picture under the same name is another file.
    Image.fromarray(photograph(80, 60)).save(picture)
    (three,) = rows(second)
    assert (three["width"], three["height"]) == (60, 80)
    assert file.stat().st_mtime_ns != written


def labels(root: Path, *directories: str) -> list[tuple[str, str, str]]:
    """Label, curve and folder of a setting of each."""
    for directory in directories:
        (root / directory).mkdir(parents=True, exist_ok=True)
    settings = parse_specs([f"{root / directory}:steps=2" for directory in directories])
    return [(setting.label, setting.curve, setting.folder) for setting in settings]


def test_models_that_share_a_name_are_told_apart(tmp_path: Path) -> None:
    """By the shortest parts of their paths that have folders of their own; one model alone keeps its name."""
    assert labels(tmp_path, "runA/model") == [("model:steps=2", "model", "model_steps=2")]
    assert labels(tmp_path, "runA/model", "runB/model", "other") == [
        ("runA/model:steps=2", "runA/model", "runA_model_steps=2"),
        ("runB/model:steps=2", "runB/model", "runB_model_steps=2"),
        ("other:steps=2", "other", "other_steps=2"),
    ]
    assert [curve for _, curve, _ in labels(tmp_path, "x/run/m", "y/run/m", "z/m")] == ["x/run/m", "y/run/m", "z/m"]
    folders = [folder for *_, folder in labels(tmp_path, "x/run/m", "x/m", "y/run_m")]
    assert len(set(folders)) == 3
    (tmp_path / "avif").mkdir()
    mixed = parse_specs(["avif/3:quality=1", str(tmp_path / "avif")])
    assert [setting.label for setting in mixed] == ["avif/3:quality=1", f"{tmp_path.name}/avif"]


def test_models_that_share_a_name_have_encodings_of_their_own(tmp_path: Path) -> None:
    """Though the labels of the whole settings differ already."""
    for run_name in ("runA", "runB"):
        (tmp_path / run_name / "model").mkdir(parents=True)
    one, other = parse_specs([f"{tmp_path}/runA/model:steps=1", f"{tmp_path}/runB/model:steps=2"])
    assert one.encoding.folder != other.encoding.folder


def test_a_setting_given_twice_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = parse_specs(["webp:quality=1,2", "webp:quality=2", "m:steps=1", "./m/:steps=1", f"{tmp_path}/m:steps=1"])
    assert [setting.label for setting in settings] == ["webp:quality=1", "webp:quality=2", "m:steps=1"]


def test_models_are_loaded_on_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded = []

    def load(*names: str, device: str = "auto", **_: object) -> None:
        loaded.append((*names, device))
        raise ModelError("enough")

    monkeypatch.setattr(api, "load", load)
    monkeypatch.setattr(api, "load_finisher", load)
    (setting,) = parse_specs(["linear:bytes=90"], device="cpu")
    with pytest.raises(ModelError, match="enough"):
        setting.encode(tmp_path / "a.png")
    with pytest.raises(ModelError, match="enough"):
        contenders._finisher("oscar-s", setting.device)
    assert loaded == [("linear", "cpu"), ("oscar-s", "cpu")]


def test_models_are_fetched_before_workers_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    located = []

    def locate(name: str) -> None:
        located.append(name)
        if name == "oscar-s":
            raise ModelError("cannot fetch")

    monkeypatch.setattr("codling.evaluation.runner.locate", locate)
    settings = parse_specs(["webp:quality=1", "linear:bytes=60,90", "linear:bytes=60:finish=oscar-s"])
    with pytest.raises(ModelError, match="cannot fetch"):
        run([], settings, tmp_path, metrics=("psnr",), jobs=1, report=lambda _: None)
    assert located == ["linear", "oscar-s"]
