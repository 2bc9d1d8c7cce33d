"""`codling calibrate`: what is measured is what is stored, networks stay, and errors name a command that runs."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import codling
from codling.bitstream.container import CodecId
from codling.bitstream.context_network import ContextNetwork
from codling.bitstream.indices import IndexModel
from codling.errors import ModelError
from codling.weights import registry
from codling.weights.store import load_parts, save_model
from tests.conftest import noise_picture
from tests.test_splitting import run
from tests.training import CPU


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one picture, and a directory that is named as one."""
    folder = tmp_path_factory.mktemp("calibrate")
    Image.fromarray(noise_picture(64, 64)).save(folder / "a.png")
    (folder / "b.png").mkdir()
    return folder


def test_tables_describe_the_weights_that_are_stored(tiny_directory: Path, pictures: Path, tmp_path: Path) -> None:
    """A model of 8 bits that is calibrated again, losing nothing, gets the same tables."""
    source = tiny_directory
    for name, precision in (("small", "int8"), ("again", "float32")):
        run("calibrate", source, "--images", pictures, "-o", tmp_path / name, "--precision", precision)
        source = tmp_path / name
    small, again = (load_parts(tmp_path / name, device=CPU).error_tables for name in ("small", "again"))
    for conditional, tables in small.items():
        assert np.array_equal(tables.whole.log_error, again[conditional].whole.log_error)


def test_networks_of_an_oscar_model_stay_and_only_tables_are_fitted(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.open(photos[0]).crop((0, 0, 64, 64)).save(tmp_path / "in" / "a.png")
    parts = load_parts(registry.locate("oscar-s")[1], device=CPU)
    book = parts.index_models[0].symbols
    even = IndexModel(np.zeros(book, np.uint8), np.ones((4, book), np.uint16))
    save_model(tmp_path / "mixed", replace(parts, index_models=(even, *parts.index_models[1:])))
    said = run("calibrate", tmp_path / "mixed", "--images", tmp_path / "in", "-o", tmp_path / "out")
    assert "context networks stay at levels 1, 2, 3, 4, 5, 6, 7; tables are fitted at 0" in said
    fitted, *networks = load_parts(tmp_path / "out", device=CPU).index_models
    assert isinstance(fitted, IndexModel)
    assert not np.array_equal(fitted.weights, even.weights)
    for new, before in zip(networks, parts.index_models[1:], strict=True):
        assert isinstance(new, ContextNetwork) and isinstance(before, ContextNetwork)
        assert np.array_equal(new.output, before.output)


def test_the_error_of_a_model_without_tables_names_a_command_that_runs(
    tiny_directory: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = Path("my models", "tiny")
    save_model(model, load_parts(tiny_directory, device=CPU))
    with pytest.raises(ModelError, match="encode with model NEW") as error:
        registry.load(model, device=CPU, codec=CodecId.DIFFC)
    found = re.search("`codling (.*)`", str(error.value))
    assert found
    run(*({"DIR": pictures, "NEW": tmp_path / "new"}.get(word, word) for word in shlex.split(found[1])))
    codec = registry.load(tmp_path / "new", device=CPU, codec=CodecId.DIFFC)
    assert codling.encode(noise_picture(32, 32), model=codec, max_bytes=60)


def test_every_command_that_takes_a_model_takes_a_name_and_tells_a_run_from_its_model(
    tiny_directory: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODLING_MODELS", str(tiny_directory.parent))
    save_model(tmp_path / "run" / "model", load_parts(tiny_directory, device=CPU))
    split, pack, average = (["weights", name] for name in ("split", "pack", "average"))
    for command, count, options in (
        (["calibrate"], 1, ["--images", pictures]),
        (["weights", "predict"], 1, ["--data", pictures]),
        (split, 1, []),
        (pack, 1, ["--images", pictures]),
        (average, 2, []),
    ):
        output = tmp_path / command[-1]
        with pytest.raises(ModelError, match="directory of a training run; its model is"):
            run(*command, *[tmp_path / "run"] * count, "-o", output, *options)
        if command in (split, pack, average):  # the others are as they are, and take long
            run(*command, *["tiny"] * count, "-o", output, *options)
            assert (output / "config.json").is_file()
