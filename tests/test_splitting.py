"""Weights in parts and in fewer bits."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import codling
from codling.cli.main import app
from codling.errors import ConfigError, ModelError
from codling.evaluation.metrics import psnr
from codling.weights.catalogue import WEIGHTS
from codling.weights.registry import load_codec
from codling.weights.splitting import PARTS, join, split
from tests.conftest import noise_picture
from tests.training import CPU


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_parts_are_bounded_and_make_the_same_model(tiny_directory: Path, tmp_path: Path) -> None:
    limit = 100_000
    parts = split(tiny_directory, tmp_path / "parts", limit=limit)
    size = (tiny_directory / WEIGHTS).stat().st_size
    assert len(parts) == -(-size // limit) > 3
    assert all(part.stat().st_size <= limit for part in parts)
    join(tmp_path / "parts", tmp_path / "joined")
    assert {path.name: path.read_bytes() for path in (tmp_path / "joined").iterdir()} == {
        name: (tiny_directory / name).read_bytes() for name in (WEIGHTS, "config.json")
    }


def test_parts_that_are_damaged_missing_or_of_another_model(tiny_directory: Path, tmp_path: Path) -> None:
    parts = split(tiny_directory, tmp_path / "parts", limit=100_000)
    whole = parts[1].read_bytes()
    parts[1].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"\.001 is damaged"):
        join(tmp_path / "parts", tmp_path / "joined")
    parts[1].unlink()
    with pytest.raises(ModelError, match=r"lacks .*\.001"):
        join(tmp_path / "parts", tmp_path / "joined")
    parts[1].write_bytes(whole)
    listed = tmp_path / "parts" / PARTS
    hashes = json.loads(listed.read_text())
    listed.write_text(json.dumps(dict(reversed(hashes.items()))))
    with pytest.raises(ModelError, match="not those of the model"):
        join(tmp_path / "parts", tmp_path / "joined")
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    for content in ("[]", '["model.safetensors.000"]', '{"model.safetensors.000": 3}', "null"):
        listed.write_text(content)
        with pytest.raises(ModelError, match="is not a table of parts"):
            join(tmp_path / "parts", tmp_path / "joined")
    listed.write_text(json.dumps(hashes))
    config = tmp_path / "parts" / "config.json"
    config.write_text(json.dumps({"format": 1}))
    for attempt in (join, split):
        with pytest.raises(ModelError, match="lacks the SHA-256"):
            attempt(tmp_path / "parts", tmp_path / "joined")
    listed.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        join(tmp_path / "parts", tmp_path / "joined")
    with pytest.raises(ModelError, match=f"has no {PARTS}"):
        join(tiny_directory, tmp_path / "joined")
    with pytest.raises(ConfigError, match="not empty"):
        split(tiny_directory, tmp_path / "parts")


def test_what_is_cut_or_joined_appears_whole(
    tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its last file, a command has written nothing, and can be given again."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for act, source, target in ((split, tiny_directory, "parts"), (join, tmp_path / "parts", "joined")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shutil, "copyfile", killed)
            act(source, tmp_path / target)
        assert not (tmp_path / target).exists()
        act(source, tmp_path / target)
    assert load_codec(tmp_path / "joined", name="joined", device=CPU).model_id


def test_the_command_line_splits_joins_and_packs(tiny_directory: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(noise_picture(50, 70)).save(pictures / "a.png")
    (pictures / "folder.png").mkdir()
    assert "parts of at most 104,8" in run(
        "weights", "split", tiny_directory, "-o", tmp_path / "parts", "--max-mib", 0.1
    )
    run("weights", "join", tmp_path / "parts", "-o", tmp_path / "joined")
    said = run("weights", "pack", tmp_path / "joined", "-o", tmp_path / "packed", "--images", pictures)
    found = re.search(r"PSNR ([0-9.]+) dB before, ([0-9.]+) dB after", said)
    assert found
    before, after = (float(number) for number in found.groups())
    codec = codling.load(tmp_path / "joined")
    decoded = np.asarray(codling.decode(codling.encode(pictures / "a.png", model=codec), model=codec))
    assert before == pytest.approx(psnr(noise_picture(50, 70), decoded), abs=1e-3)
    assert after != before
    small, large = ((tmp_path / name / WEIGHTS).stat().st_size for name in ("packed", "joined"))
    assert small < 0.5 * large
    assert load_codec(tmp_path / "packed", name="packed", device=CPU).model_id
    with pytest.raises(ConfigError, match="no picture in"):
        run("weights", "pack", tmp_path / "joined", "-o", tmp_path / "again", "--images", tmp_path / "packed")
    assert not (tmp_path / "again").exists()
