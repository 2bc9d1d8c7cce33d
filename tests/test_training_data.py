"""Training data: where it comes from, in what order, and what is done about what cannot be read."""

import io
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codling.errors import ConfigError
from codling.files import PICTURE_SUFFIXES
from codling.training import shards
from codling.training.augment import augmented
from codling.training.data import load_pictures, training_batch
from codling.training.loop import train
from codling.training.shards import entries, expand_braces
from codling.training.sources import HeldSource, StreamedSource, open_source
from tests.conftest import noise_picture
from tests.training import CPU, png, tiny_run, write_shard


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(pictures: Path) -> Iterator[str]:
    """The address at which a web server offers the shards."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(pictures))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{008..010}.tar", ["a-008.tar", "a-009.tar", "a-010.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
    ],
)
def test_braces_name_many_shards(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


def test_shards_over_http_are_the_shards_on_disk(pictures: Path, server: str) -> None:
    far, near = load_pictures(f"{server}/train-{{0..1}}.tar", crop=64), load_pictures(pictures, crop=64)
    assert far.broken == 0
    assert len(far.pictures) == len(near.pictures) == 12
    assert all(np.array_equal(a, b) for a, b in zip(far.pictures, near.pictures, strict=True))


def test_a_missing_shard_is_counted_and_the_others_are_used(server: str) -> None:
    data = load_pictures(f"{server}/train-{{1..2}}.tar", crop=64)
    assert (len(data.pictures), data.broken) == (6, 1)
    with pytest.raises(ConfigError, match=r"2 of 2 entries.*FileNotFoundError"):
        load_pictures(f"{server}/train-{{7..8}}.tar", crop=64)
    with pytest.raises(ConfigError, match=r"no picture of at least 50 px.*cannot be read: .*train-7.tar.*lower crop"):
        load_pictures(f"{server}/train-7.tar", crop=64)


def test_a_connection_that_breaks_is_taken_up_again(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (pictures / "train-0.tar").read_bytes()
    cuts = [whole.index(b"03.png") + 530, 530, None]  # in the midst of a picture each
    tried: list[str] = []

    def breaking(shard: str) -> io.BytesIO:
        tried.append(shard)
        return io.BytesIO(whole[: cuts[len(tried) - 1]])

    monkeypatch.setattr(shards, "open_shard", breaking)
    pauses: list[float] = []
    monkeypatch.setattr(shards.time, "sleep", pauses.append)
    near = list(entries(str(pictures / "train-0.tar").replace(".tar", "-{0..0}.tar")))
    assert [bool(entry.data) for entry in near][-1] is False  # a file on disk is not tried again
    assert len(tried) == 1
    tried.clear()
    far = list(entries("http://host/train-0.tar"))
    assert [entry.name[-6:] for entry in far] == [f"0{i}.png" for i in range(6)]
    assert len(tried) == 3
    assert pauses == [shards.PAUSE, 2 * shards.PAUSE]
    tried.clear()
    cuts[2] = 530
    assert not list(entries("http://host/train-0.tar"))[-1].data
    assert len(pauses) == 4  # none after the last try


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "none named"),
        ("/nowhere/pictures", "is not a directory"),
        ("http://127.0.0.1:9/photos.zip", "nor does it name tar shards"),
        ("nosuchstore://bucket/a.tar", "cannot open"),
        ("photos-{3..1}.tar", "cannot read"),
    ],
)
def test_data_that_cannot_be_had(data: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_pictures(data, crop=64)


def test_more_than_one_percent_of_broken_entries_stops_a_run(tmp_path: Path) -> None:
    for broken, stops in ((2, False), (3, True)):
        good = {f"{i}.png": png(noise_picture(16, 16, seed=i)) for i in range(200)}
        write_shard(tmp_path / "a.tar", good | {f"bad{i}.png": b"none" for i in range(broken)})
        if stops:
            with pytest.raises(ConfigError, match=r"3 of 203 entries.*bad0\.png"):
                load_pictures(tmp_path, crop=16)
        else:
            assert load_pictures(tmp_path, crop=16).broken == 2


def test_what_was_read_is_known_by_the_names(tmp_path: Path) -> None:
    """Those of the pictures that are used, in their order; also names that are not UTF-8."""
    names = (b"a.png", b"b.png", b"\xff.png")
    for number, name in enumerate(names):
        (tmp_path / os.fsdecode(name)).write_bytes(png(noise_picture(16, 16, seed=number)))
    checksums = [load_pictures(tmp_path, crop=16).checksum for _ in range(2)]
    (tmp_path / "a.png").write_bytes(b"none")
    (tmp_path / "c.png").write_bytes(png(noise_picture(16, 16)))
    other = load_pictures(tmp_path, crop=16)
    assert len(other.pictures) == len(names)
    assert checksums[0] == checksums[1] != other.checksum


def test_files_that_may_not_be_read_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(noise_picture(16, 16, seed=number)))
    (tmp_path / "folder.png").mkdir()
    read = Path.read_bytes

    def refusing(path: Path) -> bytes:
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    found = load_pictures(tmp_path, crop=16)
    assert (len(found.pictures), found.broken) == (2, 1)
    assert [entry.name for entry in entries(str(tmp_path)) if not entry.data] == [f"{tmp_path}/1.png (PermissionError)"]


def test_files_to_train_on_are_those_that_are_encoded(tmp_path: Path) -> None:
    """By the same suffixes, in folders and in shards."""
    names = sorted(f"{n}{suffix.upper()}" for n, suffix in enumerate(PICTURE_SUFFIXES))
    for name in (*names, "x.txt"):
        (tmp_path / name).write_bytes(b"data")
    assert [Path(entry.name).name for entry in entries(str(tmp_path))] == names
    write_shard(tmp_path / "a.tar", dict.fromkeys((*names, "x.txt"), b"data"))
    assert [Path(entry.name).name for entry in entries(str(tmp_path))] == names


def test_pictures_to_train_on_are_those_that_are_coded(tmp_path: Path) -> None:
    """Upright, 16 bits rounded, transparency on white; and damaged ones are counted."""
    picture = noise_picture(16, 24, seed=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
    clear = np.dstack([picture, np.zeros((16, 24), np.uint8)])
    for name, image, options in (
        ("a", Image.fromarray(picture), {"exif": exif}), ("b", wide, {}), ("c", Image.fromarray(clear), {})
    ):  # fmt: skip
        image.save(tmp_path / f"{name}.png", **options)
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    found = load_pictures(tmp_path, crop=16, scales=(0.5, 1.0))
    assert found.broken == 1
    upright, gray, white = found.pictures
    assert np.array_equal(upright, np.rot90(picture, -1))
    assert np.array_equal(gray, picture[..., :1].repeat(3, 2))
    assert (white == 255).all()


def test_processes_together_have_the_batch_that_one_has(pictures: Path) -> None:
    held = load_pictures(pictures, crop=64).pictures
    batch = partial(training_batch, held, 5, batch=6, crop=64, seed=3)
    whole = batch()
    assert torch.equal(torch.cat([batch(places=range(3)), batch(places=range(3, 6))]), whole)
    assert not torch.equal(whole, training_batch(held, 6, batch=6, crop=64, seed=3))
    # Where pictures wait changes nothing.
    assert torch.equal(training_batch([torch.from_numpy(p.copy()) for p in held], 5, batch=6, crop=64, seed=3), whole)


def test_augmentation_keeps_the_picture_where_it_changes_nothing() -> None:
    picture = noise_picture(64, 64, seed=4)
    rngs = [np.random.default_rng(seed) for seed in range(40)]
    squares = augmented([picture] * 40, rngs, crop=64, scales=(1.0, 1.0), device=CPU)
    original = torch.from_numpy(picture.copy()).permute(2, 0, 1) / 127.5 - 1
    same = [bool(torch.equal(square, original) or torch.equal(square, original.flip(-1))) for square in squares]
    assert 0.4 < np.mean(same) < 0.95


def streamed(pictures: Path, **changes: object) -> StreamedSource:
    config = tiny_run(pictures, keep="stream", window=1, batch=2, **changes)
    source = open_source(config, places=range(2), device=CPU, state={})
    assert isinstance(source, StreamedSource)
    return source


def test_streamed_epochs_show_every_picture_once(pictures: Path) -> None:
    source = streamed(pictures)
    names = []
    for step in range(12):  # two epochs of twelve pictures
        source.batch(step)
        first = source.begun[-1][0]
        names += [source.window[2 * (step - first) + place].name.split("/")[-1] for place in range(2)]
    source.close()
    assert sorted(names[:12]) == sorted(names[12:]) == sorted(f"{s}{i}.png" for s in range(2) for i in range(6))
    assert names[:12] != names[12:]


def test_a_stream_goes_on_where_a_checkpoint_left_it(pictures: Path) -> None:
    source = streamed(pictures)
    batches = [source.batch(step) for step in range(8)]
    for step in (1, 3, 7):
        early = streamed(pictures)
        for before in range(step + 1):  # a batch ahead of the checkpoint, as in the loop
            early.batch(before)
        config = tiny_run(pictures, keep="stream", window=1, batch=2)
        resumed = StreamedSource(config, places=range(2), device=CPU, state=early.state(step))
        assert torch.equal(resumed.batch(step), batches[step])
        early.close()
        resumed.close()
    parts = [
        StreamedSource(tiny_run(pictures, keep="stream", window=1, batch=2), places=[p], device=CPU, state={})
        for p in range(2)
    ]
    assert torch.equal(torch.cat([part.batch(0) for part in parts]), batches[0])
    for each in (source, *parts):
        each.close()


def test_a_streamed_run_over_http_resumes_exactly(pictures: Path, server: str, tmp_path: Path) -> None:
    config = tiny_run(pictures, data=f"{server}/train-{{0..1}}.tar", keep="stream", window=1, steps=5)
    whole = train(config, tmp_path / "whole", device=CPU, report=lambda _: None)
    train(config, tmp_path / "parts", device=CPU, max_minutes=0, report=lambda _: None)
    resumed = train(config, tmp_path / "parts", device=CPU, report=lambda _: None)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


def test_streams_pass_over_what_is_broken_and_stop_where_it_is_too_much(tmp_path: Path) -> None:
    good = {f"{i}.png": png(noise_picture(70, 70, seed=i)) for i in range(5)}
    write_shard(tmp_path / "a.tar", good | {"bad.png": b"none"})
    source = streamed(tmp_path)
    assert all(source.batch(step).shape == (2, 3, 64, 64) for step in range(3))
    assert source.damage.names
    source.close()
    write_shard(tmp_path / "a.tar", good | {f"bad{i}.png": b"none" for i in range(20)})
    source = streamed(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        for step in range(12):
            source.batch(step)
    source.close()
    with pytest.raises(ConfigError, match="raise window or lower batch"):
        StreamedSource(
            tiny_run(tmp_path, keep="stream", window=1, batch=64), places=range(64), device=CPU, state={}
        ).batch(0)


def test_streams_pass_over_windows_without_a_batch(tmp_path: Path) -> None:
    for shard in range(3):
        files = {f"{shard}{i}.png": png(noise_picture(70, 70, seed=2 * shard + i)) for i in range(2)}
        write_shard(tmp_path / f"{shard}.tar", files)
    config = tiny_run(tmp_path, keep="stream", window=2, batch=3)  # windows of four pictures and of two

    def opened(state: dict[str, int]) -> StreamedSource:
        return StreamedSource(config, places=range(3), device=CPU, state=state)

    source = opened({})
    batches = [source.batch(step) for step in range(4)]
    assert [window for _, window in source.begun] == [5, 6]
    resumed = opened(source.state(3))
    assert torch.equal(resumed.batch(3), batches[3])
    early = opened({})
    early.batch(0)
    again = opened(early.state(1))
    assert torch.equal(again.batch(1), batches[1])
    for each in (source, resumed, early, again):
        each.close()


def test_a_stream_needs_shards(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(noise_picture(70, 70)))
    with pytest.raises(ConfigError, match="keep=stream needs them"):
        streamed(tmp_path)
    assert isinstance(open_source(tiny_run(tmp_path), places=range(4), device=CPU, state={}), HeldSource)
