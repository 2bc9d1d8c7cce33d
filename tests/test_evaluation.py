"""`codling eval` and `codling report`: honest files, failures that cost one picture, runs that resume, and the page."""

import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from codling import api
from codling.cli.main import app
from codling.errors import CodlingError, ConfigError, ImageError, RateError
from codling.evaluation import runner
from codling.evaluation.contenders import Setting, parse_spec
from codling.evaluation.patches import patch_distances, patches
from codling.evaluation.report import build
from codling.evaluation.runner import Results, pictures_in, run
from codling.evaluation.summary import bd_rate, bd_rates, interval, read, read_published, summarise, write
from tests.test_metrics import photograph

METRICS = ("psnr", "ms-ssim", "swd")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of different, uneven sizes, and one that is none."""
    directory = tmp_path_factory.mktemp("images")
    for number, (height, width) in enumerate([(170, 200), (163, 181), (200, 165)]):
        Image.fromarray(photograph(height, width)).save(directory / f"{number}.png")
    (directory / "broken.png").write_bytes(b"not a picture")
    return directory


@pytest.fixture(scope="module")
def done(images: Path, tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("out")
    specs = ["webp:quality=1,30,60", "jpeg:quality=5,20,40", "avif/3:quality=20", f"{tiny_directory}:steps=1"]
    settings = [setting for spec in specs for setting in parse_spec(spec)]
    results = run(pictures_in(images), settings, out, metrics=METRICS, jobs=2, report=lambda _: None)
    write(results, summarise(results), out)
    return out, results


def test_rates_are_lengths_of_files_on_disk(done: tuple[Path, Results]) -> None:
    out, results = done
    assert len(results.rows) == 8 * 3
    for row in results.rows:
        folder = row["setting"].replace("/", "_").replace(":", "_")
        (file,) = (out / "files" / folder.removesuffix("_steps=1")).glob(Path(row["picture"]).stem + ".*")
        assert row["bytes"] == file.stat().st_size
        assert row["bpp"] == 8 * file.stat().st_size / (row["width"] * row["height"])


def test_a_broken_picture_costs_itself_only(done: tuple[Path, Results]) -> None:
    _, results = done
    assert {failure.picture for failure in results.failures} == {"broken.png"}
    assert len(results.failures) == 8
    assert all(failure.message for failure in results.failures)


def test_files_decode_from_their_bytes_alone(done: tuple[Path, Results], images: Path) -> None:
    """Every classical file, shrunk ones of uneven sides included, gives the measured picture in the original's size."""
    out, _ = done
    for spec in ("webp:quality=30", "avif/3:quality=20"):
        (setting,) = parse_spec(spec)
        for picture in sorted(images.glob("?.png")):
            file = out / "files" / setting.encoding.folder / f"{picture.stem}{setting.suffix}"
            decoded = np.asarray(setting.decode(file.read_bytes()))
            assert decoded.shape == np.asarray(Image.open(picture)).shape
            assert np.array_equal(decoded, np.asarray(Image.open(out / "decoded" / setting.folder / picture.name)))


def test_a_second_run_resumes(
    done: tuple[Path, Results], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = done
    copied = tmp_path / "out"
    shutil.copytree(out, copied)
    settings = parse_spec("webp:quality=1,30")
    pictures = [images / "0.png", images / "1.png"]
    for kept in ("encoded", "measures"):
        (copied / kept / settings[0].folder / "0.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in copied.glob("files/webp*/*")}
    results = run(pictures, settings, copied, metrics=("psnr",), jobs=1, report=lambda _: None)
    changed = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed == {"0.webp"}
    assert len(results.rows) == 4
    # Another picture under the same name is another measurement.
    Image.fromarray(photograph(180, 180)).save(tmp_path / "0.png")
    (row,) = run([tmp_path / "0.png"], settings[1:], copied, metrics=("psnr",), jobs=1, report=lambda _: None).rows
    assert (row["width"], row["height"]) == (180, 180)


def test_an_interrupted_run_goes_on(images: Path, tmp_path: Path) -> None:
    """Interrupted after its first setting, a run keeps what it has and does the rest the next time."""

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    settings, pictures = parse_spec("webp:quality=1,30"), [images / "0.png", images / "1.png"]
    with pytest.raises(KeyboardInterrupt):
        run(pictures, settings, tmp_path, metrics=("psnr",), jobs=1, report=interrupt)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*")}
    assert {path.parent.name for path in before} == {settings[0].folder}
    results = run(pictures, settings, tmp_path, metrics=("psnr",), jobs=1, report=lambda _: None)
    assert len(results.rows) == 4
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


def test_a_full_disk_is_reported_and_leaves_no_half_file(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (setting,) = parse_spec("webp:quality=1")
    monkeypatch.setattr("codling.files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        runner._encode(images / "0.png", setting, tmp_path / "x.webp", tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_results_are_written_and_read_back(done: tuple[Path, Results]) -> None:
    out, results = done
    again = read(out)
    assert again.rows == results.rows
    assert again.failures == results.failures
    assert len((out / "results.csv").read_text().splitlines()) == len(results.rows) + 1
    assert (out / "results.parquet").stat().st_size > 0
    with pytest.raises(CodlingError, match="run `codling eval"):
        read(out / "files")


def test_intervals_hold_the_mean_and_narrow_with_pictures() -> None:
    values = np.random.default_rng(0).normal(10, 2, 400)
    few, many = interval(values[:20]), interval(values)
    assert few.low < values[:20].mean() < few.high
    assert many.high - many.low == pytest.approx(4 * 2 / np.sqrt(400), rel=0.15)  # two standard errors a side
    assert interval(values) == many


def test_bd_rate_of_curves_whose_answer_is_known() -> None:
    """A curve that takes 20% fewer bits at every quality; a lower-is-better metric; no overlap."""
    quality = np.array([20.0, 23.0, 25.0, 28.0])
    rate = np.exp(0.3 * quality)
    reference = list(zip(rate, quality, strict=True))
    saving = list(zip(0.8 * rate, quality, strict=True))
    assert bd_rate(reference, saving) == pytest.approx(-20)
    assert bd_rate(saving, reference) == pytest.approx(25)
    assert bd_rate(reference, reference) == pytest.approx(0)
    shifted = list(zip(0.8 * np.exp(0.3 * (quality + 1)), quality + 1, strict=True))
    assert bd_rate(reference, shifted) == pytest.approx(-20, abs=0.2)
    falling = [(r, -q) for r, q in reference]
    assert bd_rate(falling, [(0.8 * r, q) for r, q in falling], higher_is_better=False) == pytest.approx(-20)
    with pytest.raises(RateError, match="share no quality"):
        bd_rate(reference, [(r, q + 50) for r, q in reference])
    with pytest.raises(RateError, match="two or more"):
        bd_rate(reference, reference[:1])


def test_bd_rates_have_both_averagings(done: tuple[Path, Results]) -> None:
    _, results = done
    there, back = bd_rates(results, "jpeg", "webp", "psnr"), bd_rates(results, "webp", "jpeg", "psnr")
    assert (1 + there["of mean curves"] / 100) * (1 + back["of mean curves"] / 100) == pytest.approx(1)
    assert there["mean of pictures"] * back["mean of pictures"] < 0
    assert there["pictures"] == back["pictures"] == 3


class Links(HTMLParser):
    """Collects whatever a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href") and tag != "a"]


@pytest.fixture(scope="module")
def page(done: tuple[Path, Results], images: Path) -> str:
    out, results = done
    return build(
        results, summarise(results), out, images, budgets=(1.0,), pictures=("0.png", "1.png"), reference="jpeg",
        title="A <test>", machine={"system": "none"},
    )  # fmt: skip


def test_the_page_stands_alone(page: str) -> None:
    links = Links()
    links.feed(page)
    assert all(link.startswith(("#", "data:")) or not link for link in links.found)
    assert "url(http" not in page
    assert "A &lt;test&gt;" in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert set(data["pictures"]) == {"0.png", "1.png"}
    assert data["pictures"]["0.png"]["original"].startswith("data:image/webp;base64,")


def test_the_page_works_in_a_browser(page: str, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    path = tmp_path / "report.html"
    path.write_text(page)
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-ready="yes"' in dom  # the script ran to its end
    assert '<option value="original">' in dom
    assert dom.count('src="data:image/webp') == 2


def test_reports_that_cannot_be_drawn(done: tuple[Path, Results], images: Path) -> None:
    out, results = done
    common = {"out": out, "images": images, "title": "", "machine": {}}
    points = summarise(results)
    with pytest.raises(CodlingError, match=r"near 50\.0 bpp"):
        build(results, points, budgets=(50.0,), pictures=("0.png",), reference=None, **common)  # type: ignore[arg-type]
    with pytest.raises(CodlingError, match=r"no measurement of a picture 'x\.png'"):
        build(results, points, budgets=(1.0,), pictures=("x.png",), reference=None, **common)  # type: ignore[arg-type]
    with pytest.raises(CodlingError, match="no curve 'gif'"):
        build(results, points, budgets=(1.0,), pictures=("0.png",), reference="gif", **common)  # type: ignore[arg-type]
    with pytest.raises(CodlingError, match="no measurement"):
        build(Results([], {}, []), [], budgets=(1.0,), pictures=(), reference=None, **common)  # type: ignore[arg-type]


def test_patches_are_the_grid_and_the_grid_shifted_by_half() -> None:
    picture = np.arange(100 * 70 * 3).reshape(100, 70, 3)
    found = patches(picture, 32)
    assert found.shape == (3 * 2 + 2 * 1, 32, 32, 3)
    assert np.array_equal(found[3], picture[32:64, 32:64])
    assert np.array_equal(found[7], picture[48:80, 16:48])
    assert patches(picture, 128).shape == (0, 128, 128, 3)


class MeanFeatures(torch.nn.Module):
    """Means of 2 x 2 squares of a patch: features that need no weights."""

    num_features = 12

    def forward(self, patch: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(patch.float() / 255, 2).flatten(1)


def test_patch_distances_are_those_of_their_features(tmp_path: Path) -> None:
    """FID against the closed form of two Gaussians; KID near zero for equal sets, larger for darker pictures."""
    originals, darker = photograph(200, 300), (photograph(200, 300) * 0.7).astype(np.uint8)
    for name, picture in (("a", originals), ("b", darker)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    values = patch_distances([(a, b)], size=32, features=MeanFeatures())
    sides = [
        MeanFeatures()(torch.from_numpy(patches(picture, 32)).permute(0, 3, 1, 2)).double().numpy()
        for picture in (originals, darker)
    ]
    mean, cov = [side.mean(0) for side in sides], [np.cov(side.T) for side in sides]
    root = np.sqrt(np.linalg.eigvals(cov[0] @ cov[1]).astype(complex)).real.sum()
    expected = np.square(mean[0] - mean[1]).sum() + np.trace(cov[0] + cov[1]) - 2 * root
    assert values["fid-32"] == pytest.approx(expected, rel=1e-2)
    same = patch_distances([(a, a)], size=32, features=MeanFeatures())
    assert abs(same["kid-32"]) < 0.1 * values["kid-32"]
    with pytest.raises(ImageError, match="at least 2"):
        patch_distances([(a, a)], size=256, features=MeanFeatures())


def test_published_figures_join_the_report(done: tuple[Path, Results], images: Path, tmp_path: Path) -> None:
    out, results = done
    table = tmp_path / "vtm.csv"
    table.write_text("curve,bpp,psnr,ms-ssim,source\nVTM,0.05,26.1,,a paper\nVTM,0.11,28.5,,a paper\n")
    points = read_published(table)
    assert [point.metrics["psnr"].mean for point in points] == [26.1, 28.5]
    page = build(
        results, [*summarise(results), *points], out, images, budgets=(1.0,), pictures=("0.png",), reference="jpeg",
        title="", machine={},
    )  # fmt: skip
    assert "VTM: a paper" in page
    for text, message in [
        ("curve,bpp,psnr\n", "no rows"),
        ("curve,bpp,psnr\nx,1,2\n", "wanted the columns"),
        ("curve,bpp,source,psnr\nx,1,y,high\n", "line 2"),
    ]:
        table.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_published(table)


def test_folders_without_pictures_and_with_equal_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no picture in"):
        pictures_in(tmp_path)
    for suffix in ("png", "bmp"):
        Image.fromarray(photograph(20, 20)).save(tmp_path / f"same.{suffix}")
    with pytest.raises(ConfigError, match="several pictures named 'same'"):
        pictures_in(tmp_path)


def test_the_commands(images: Path, tmp_path: Path) -> None:
    """The exit status tells that a picture failed; everything else is there, the report too."""
    cli = CliRunner()
    asked = ["eval", "--images", str(images), "--codec", "webp:quality=1,40", "--out", str(tmp_path), "--time"]
    result = cli.invoke(app, [*asked, "--metric", "psnr", "--jobs", "1"])
    assert result.exit_code == 1
    assert "failed: webp:quality=1 on broken.png" in result.output
    assert "GB" in result.output
    output = tmp_path / "report.html"
    drawn = cli.invoke(app, ["report", str(tmp_path), "--images", str(images), "-o", str(output), "--bpp", "0.5"])
    assert drawn.exit_code == 0, drawn.output
    assert output.stat().st_size > 10_000


@pytest.mark.parametrize(("device", "jobs"), [("cpu", os.cpu_count()), ("cuda", 1)])
def test_a_gpu_is_given_one_job_at_a_time(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, jobs: int
) -> None:
    asked: list[tuple[int, set[str]]] = []

    def watched(_: list[Path], settings: list[Setting], *__: object, jobs: int, **___: object) -> Results:
        asked.append((jobs, {setting.device for setting in settings}))
        return Results([], {}, [])

    monkeypatch.setattr(api, "torch_device", torch.device)
    monkeypatch.setattr(runner, "run", watched)
    arguments = ["eval", "--images", str(images), "--codec", "linear:bytes=90", "--out", str(tmp_path)]
    for more, expected in (([], jobs), (["--jobs", "3"], 3)):
        done = CliRunner().invoke(app, [*arguments, "--device", device, *more])
        assert done.exit_code == 0, done.exception
        assert asked.pop() == (expected, {device})


def test_an_unknown_device_is_said_at_once(images: Path, tmp_path: Path) -> None:
    arguments = ["eval", "--images", str(images), "--codec", "linear:bytes=90", "--out", str(tmp_path)]
    error = CliRunner().invoke(app, [*arguments, "--device", "tpu"]).exception
    assert 'device must be "auto", "cpu" or "cuda"' in str(error)
