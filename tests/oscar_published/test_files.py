"""The published OSCAR, imported: the golden file, its levels and its files."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import codling
from codling.bitstream.container import CodecId
from codling.cli.main import app
from codling.codecs.base import RateTarget
from codling.codecs.oscar import OscarCodec
from codling.diffusion.posterior import signal_share
from codling.diffusion.pseudo_time import cosine
from codling.errors import ModelError
from codling.evaluation.contenders import parse_spec
from codling.models.oscar_stable_diffusion import OscarStableDiffusion
from codling.models.rate_levels import OscarModel, Tokens
from codling.weights import registry
from codling.weights.store import Parts, load_parts, save_model
from tests.conftest import noise_picture
from tests.golden.oscar_parts import golden_oscar
from tests.oscar_published.conftest import agrees, tables
from tests.test_oscar import image_of

pytest.importorskip("diffusers")
pytest.importorskip("peft")
CPU = torch.device("cpu")


@torch.no_grad()
def test_merged_and_prepared_it_computes_the_same_at_every_rate(
    merged: OscarStableDiffusion, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not [name for name in merged.state_dict() if "lora" in name]
    prepared = merged.prepare()
    image = torch.from_numpy(arrays["image"])
    encode, runs = prepared.autoencoder.encode, []
    monkeypatch.setattr(prepared.autoencoder, "encode", lambda image: runs.append(image) or encode(image))
    for level, tokens in enumerate(prepared.encode_levels(image, range(8))):
        assert agrees(tokens.indices[:, 0], arrays[f"rate{level}_indices"])
        rough = prepared.rough_latent(tokens, level)
        assert agrees(prepared.denoise(rough, level), arrays[f"rate{level}_x0"])
        assert agrees(merged.velocity(rough, level), arrays[f"rate{level}_unet"])
        if f"rate{level}_image" in arrays:
            assert agrees(prepared.decode(tokens, level), arrays[f"rate{level}_image"])
    assert len(runs) == 1


def test_preparing_leaves_the_model_as_it_was(merged: OscarStableDiffusion) -> None:
    before = set(merged.state_dict())
    prepared = merged.prepare()
    dropped = {name for name in before if ".attn2.to_k." in name or ".attn2.to_v." in name}
    assert dropped
    assert set(merged.state_dict()) == before
    assert before - set(prepared.state_dict()) == dropped
    assert prepared.unet.conv_in.weight is merged.unet.conv_in.weight


def test_levels_are_the_published_table(merged: OscarStableDiffusion) -> None:
    golden = golden_oscar()
    for level, bpp, step in zip(merged.levels, golden["bpps"], golden["timesteps"], strict=True):
        side, size = golden["rate_table"][str(bpp)]
        assert (level.stride, level.codebook_size) == (512 // side, size)
        share = float(merged.signal_shares()[step])
        assert signal_share(1 - level.time) == pytest.approx(share, rel=1e-5)
    assert isinstance(merged, OscarModel)
    assert merged.grid == 64


def test_files_of_the_published_model(directory: Path) -> None:
    codec = registry.load(directory, device=CPU)
    assert isinstance(codec, OscarCodec)
    picture = noise_picture(50, 100)
    for level, tokens in ((0, 1 * 2), (3, 4 * 8)):
        file = codling.encode(picture, model=codec, level=level)
        header = codling.info(file).header_bytes
        bits = (codec.model.levels[level].codebook_size - 1).bit_length()
        assert len(file) - header <= 1 + 4 + -(-tokens * bits // 8)
        assert codling.decode(file, model=codec).size == (100, 50)


def test_a_picture_of_512_px_takes_what_the_document_says(merged: OscarStableDiffusion) -> None:
    """Level and mode, gains, and indices at fixed width: the header's 12 bytes less than the table in docs/oscar.md."""
    codec = OscarCodec(merged, name="x", model_id=1, gains=4)
    sides = [512 // level.stride for level in merged.levels]
    tokens = [Tokens(torch.zeros(1, 1, side, side, dtype=torch.int64), torch.zeros(1, 4)) for side in sides]
    sizes = [12 + len(codec.pack(one, level)) for level, one in enumerate(tokens)]
    assert sizes == [81, 337, 1041, 1425, 2065, 2577, 3089, 4113]


DECODE = """
import sys, numpy as np, torch, codling
torch.set_num_threads(2)
data = open(sys.argv[1], "rb").read()
np.save(sys.argv[3], np.asarray(codling.decode(data, model=sys.argv[2], device="cpu")))
"""


def test_a_fresh_process_decodes_the_bytes_with_another_number_of_threads(directory: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        codec = registry.load(directory, device=CPU)
        data = codling.encode(noise_picture(70, 90), model=codec, level=3)
        here = np.asarray(codling.decode(data, model=codec)).astype(int)
    finally:
        torch.set_num_threads(threads)
    (tmp_path / "x.roe").write_bytes(data)
    command = [sys.executable, "-c", DECODE, str(tmp_path / "x.roe"), str(directory), str(tmp_path / "x.npy")]
    subprocess.run(command, check=True)
    assert np.abs(np.load(tmp_path / "x.npy").astype(int) - here).max() <= 1


def test_evaluation_compares_its_levels(directory: Path, tmp_path: Path) -> None:
    Image.fromarray(noise_picture(64, 64)).save(tmp_path / "a.png")
    codec = registry.load(directory, device=CPU)
    for setting in parse_spec(f"{directory}:level=0,5"):
        level = int(dict(setting.options)["level"])
        assert setting.encode(tmp_path / "a.png") == codling.encode(tmp_path / "a.png", model=codec, level=level)


def test_the_gains_reach_the_decoder(merged: OscarStableDiffusion) -> None:
    """Law 1: with another true norm and the same indices, only the transmitted gains differ."""
    codec = OscarCodec(merged, name="x", model_id=1, gains=4)
    image = image_of(noise_picture(64, 64))
    tokens = merged.encode(image, 2)
    assert tokens.log_gains is not None
    with torch.no_grad():
        latent, read = (
            merged.latent(image),
            codec.unpack(codec.encode(image, RateTarget(level=2)), height=64, width=64)[0],
        )
        rough = merged.rough_latent(read, 2)
    ratio = (latent.flatten(2).norm(dim=-1) / rough.flatten(2).norm(dim=-1)).log()
    assert float(ratio.abs().max()) <= 1 / 32 + 1e-5


def test_tables_are_kept_level_by_level(merged: OscarStableDiffusion, directory: Path) -> None:
    parts = load_parts(directory, device=CPU)
    assert parts.index_model is None
    for read, written in zip(parts.index_models, tables(merged), strict=True):
        assert np.array_equal(read.groups, written.groups)
        assert np.array_equal(read.weights, written.weights)
    codec = registry.load(directory, device=CPU)
    assert isinstance(codec, OscarCodec)
    assert codec.gains == 4
    indices = torch.full((1, 1, 8, 8), 7)
    sizes = [len(codec.pack(Tokens(indices, torch.zeros(1, 4)), level)) for level in (6, 7)]
    assert sizes[1] < sizes[0]


def test_a_model_without_all_of_its_tables_is_damaged(merged: OscarStableDiffusion, tmp_path: Path) -> None:
    save_model(tmp_path, Parts(merged, index_models=tables(merged)[:-1]))
    with pytest.raises(ModelError, match="index tables for codebooks of"):
        registry.load(tmp_path, device=CPU)


def test_codebooks_are_stored_exactly_at_every_precision(merged: OscarStableDiffusion, tmp_path: Path) -> None:
    save_model(tmp_path, Parts(merged), precision="float16")
    stored = load_parts(tmp_path, device=CPU).model
    assert isinstance(stored, OscarStableDiffusion)
    for ours, theirs in zip(stored.hyper_encoders, merged.hyper_encoders, strict=True):
        assert torch.equal(ours.codebook, theirs.codebook)
    assert not torch.equal(stored.prompt, merged.prompt)
    with pytest.raises(ModelError, match="has levels and no DiffC"):
        registry.load(tmp_path, device=CPU, codec=CodecId.DIFFC)


@torch.no_grad()
def pointing_the_right_way(model: OscarStableDiffusion, images: list[torch.Tensor]) -> OscarStableDiffusion:
    """Two of its levels, with compressed latents on the true ones' side, as trained ones are."""
    chosen = (2, 4)
    other = OscarStableDiffusion(replace(model.config, levels=tuple(model.config.levels[n] for n in chosen)))
    other.unet, other.autoencoder, other.prompt = model.unet, model.autoencoder, model.prompt
    other.hyper_encoders = copy.deepcopy(torch.nn.ModuleList(model.hyper_encoders[n] for n in chosen))
    for level in range(2):
        tokens = [other.encode(image, level) for image in images]
        pairs = [
            (other.latent(image), other.rough_latent(one, level)) for image, one in zip(images, tokens, strict=True)
        ]
        if sum(float(cosine(latent, rough).mean()) for latent, rough in pairs) < 0:
            for parameter in other.hyper_encoder(level).decoder[-1].parameters():
                parameter.neg_()
    return other


def test_calibrating_writes_tables_and_measures_times(merged: OscarStableDiffusion, tmp_path: Path) -> None:
    pictures, runner = tmp_path / "pictures", CliRunner()
    pictures.mkdir()
    drawn = [noise_picture(64, 64, seed=seed) for seed in range(2)]
    for number, picture in enumerate(drawn):
        Image.fromarray(picture).save(pictures / f"{number}.png")
    right = pointing_the_right_way(merged, [image_of(picture) for picture in drawn])
    save_model(tmp_path / "right", Parts(right))
    common = ["--images", str(pictures), "-o", str(tmp_path / "calibrated"), "--precision", "float32"]

    assert "DiffC settings" in str(
        runner.invoke(app, ["calibrate", str(tmp_path / "right"), *common, "--set", "a=3"]).exception
    )
    done = runner.invoke(app, ["calibrate", str(tmp_path / "right"), *common, "--plot", str(tmp_path / "times.png")])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert [row[0] for row in rows[:3]] == ["level", "0", "1"]
    assert rows[0][4:] == ["time", "told", "alpha-bar", "told", "timestep", "told"]
    assert [row[-1] for row in rows[1:3]] == [str(step) for step in right.timesteps] == ["310", "210"]
    assert Image.open(tmp_path / "times.png").width > Image.open(tmp_path / "times.png").height * 3
    calibrated = registry.load(tmp_path / "calibrated", device=CPU)
    before = registry.load(tmp_path / "right", device=CPU)
    sizes = [
        [len(codec.encode(image_of(drawn[0]), RateTarget(level=n))) for n in range(2)] for codec in (before, calibrated)
    ]
    assert all(coded <= raw for raw, coded in zip(*sizes, strict=True))
    assert sum(sizes[1]) < sum(sizes[0])
