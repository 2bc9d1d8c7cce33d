"""Models on disk and in the registry, and the importer of published checkpoints."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import codling
from codling.bitstream.container import CodecId
from codling.bitstream.indices import IndexModel
from codling.cli.main import app
from codling.codecs.activity_map import Tables
from codling.configuration import from_dict, override, to_dict
from codling.errors import ConfigError, ModelError
from codling.models.cod import CoD, CoDConfig
from codling.rcc.plan import ErrorTable
from codling.weights import catalogue, registry, store
from codling.weights.importers.cod import config_from_published, import_cod, model_from_published, rename
from codling.weights.packing import pack, unpack
from codling.weights.registry import load_codec
from codling.weights.store import Parts, save_model
from tests.conftest import tiny_config, tiny_model
from tests.golden.fill import filled

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")


def published(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    state = {key: torch.from_numpy(filled(key, tuple(shape))) for key, shape in golden["parameters"].items()}
    return golden, state


def published_yaml(golden: dict) -> str:
    name = "cod.models.latent_dit.DDT" if golden["latent"] else "cod.models.pixel_dit.PixNerDiT"
    low, high = golden["guidance_interval"]
    sampling = {"guidance": golden["guidance"], "guidance_interval_min": low, "guidance_interval_max": high}
    return yaml.safe_dump(
        {
            "model": {
                "denoiser": {"class_path": name, "init_args": golden["config"]},
                "diffusion_sampler": {"class_path": "x", "init_args": {**sampling, "last_step": golden["last_step"]}},
            }
        }
    )


@pytest.mark.parametrize("name", ["cod_pixel", "cod_latent"])
@pytest.mark.parametrize("layout", ["bare", "ema_denoiser.", "wrapped"])
def test_published_checkpoints_import(name: str, layout: str, tmp_path: Path) -> None:
    golden, state = published(name)
    stored: dict = state
    if layout != "bare":
        stored = {f"ema_denoiser.{key}": value for key, value in state.items()}
        stored |= {f"denoiser.{key}": torch.zeros_like(value) for key, value in state.items()}
        stored["diffusion_trainer.proj.0.0.weight"] = torch.zeros(2)
    torch.save({"state_dict": stored} if layout == "wrapped" else stored, tmp_path / "x.pt")
    (tmp_path / "x.yaml").write_text(published_yaml(golden))
    model = import_cod(tmp_path / "x.yaml", tmp_path / "x.pt")
    assert model.config.guidance == golden["guidance"]
    image = np.load(GOLDEN / f"{name}.npz")["image"]
    with torch.no_grad():
        indices = model.condition_codec.encode(torch.from_numpy(image))
    assert np.array_equal(indices.flatten().numpy(), np.load(GOLDEN / f"{name}.npz")["indices"])


def test_every_tensor_is_consumed_and_every_one_filled() -> None:
    golden, state = published("cod_pixel")
    config = config_from_published(golden["config"], latent=False, sampling={})
    name = "blocks.0.attn.qkv.weight"
    for changed, message in [
        ({k: v for k, v in state.items() if k != name}, "missing from the checkpoint: .*attention.qkv"),
        (state | {"surprise": torch.zeros(1)}, "not in our model: surprise"),
        (state | {name: torch.zeros(3, 3)}, "has shape"),
        (
            state | {"blocks.0.attention.qkv.weight": state[name]},
            "two tensors of the checkpoint are our .*attention.qkv",
        ),
        ({f"denoiser.{k}": v for k, v in state.items()} | {"other.x": torch.zeros(1)}, "unknown purpose"),
    ]:
        with pytest.raises(ModelError, match=message):
            model_from_published(config, changed)
    with pytest.raises(ConfigError, match="unknown keys"):
        config_from_published({**golden["config"], "colour": 3}, latent=False, sampling={})


def res(prefix: str, width_in: int, width: int) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of a residual block."""
    names = {"norm1.weight": (width_in,), "norm1.bias": (width_in,), "conv1.weight": (width, width_in, 3, 3)}
    names |= {"conv1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,)}
    names |= {"conv2.weight": (width, width, 3, 3), "conv2.bias": (width,)}
    if width_in != width:
        names |= {"nin_shortcut.weight": (width, width_in, 1, 1), "nin_shortcut.bias": (width,)}
    return {prefix + key: shape for key, shape in names.items()}


def conv(prefix: str, width_in: int, width: int, size: int = 3) -> dict[str, tuple[int, ...]]:
    return {prefix + "weight": (width, width_in, size, size), prefix + "bias": (width,)}


def attn(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    names = {prefix + "norm.weight": (width,), prefix + "norm.bias": (width,)}
    for layer in ("q.", "k.", "v.", "proj_out."):
        names |= conv(prefix + layer, width, width, 1)
    return names


def published_codec(ds: int, ch: int, *, up2x: bool) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of the condition codec: `ds` as published, decoder width `ch`, 16 codewords."""
    e, out = "y_embedder.encoder.", conv("y_embedder.encoder.conv_in.", 3, 128)
    width = 128
    for level, (wide, needed) in enumerate([(128, 0), (128, 8), (256, 16), (256, 32)]):
        block = f"{e}down_block_{level}."
        out |= res(f"{block}0.", width, wide) | res(f"{block}1.", wide, wide)
        out |= conv(f"{block}2.conv.", wide, wide) if ds >= needed else {}
        width = wide
    for start, wide in [(0, 512), (5, 1024)] if ds == 128 else [(0, 512)]:
        block = f"{e}down_block_4."
        out |= res(f"{block}{start}.", width, wide) | attn(f"{block}{start + 1}.", wide)
        out |= res(f"{block}{start + 2}.", wide, wide) | attn(f"{block}{start + 3}.", wide)
        out |= conv(f"{block}{start + 4}.conv.", wide, wide) if ds == 128 else {}
        width = wide
    out |= (
        res(f"{e}mid_block.0.", width, width) | attn(f"{e}mid_block.1.", width) | res(f"{e}mid_block.2.", width, width)
    )
    out |= {f"{e}norm_out.weight": (width,), f"{e}norm_out.bias": (width,)} | conv(f"{e}conv_out.", width, 128)
    out["y_embedder.bottleneck.embedding.weight"] = (16, 128)

    d = "y_embedder.decoder."
    out |= conv(f"{d}conv_in.", 128, ch)
    kinds = "rauraurar" if ds == 128 else "rararar"  # residual, attention, upsampling
    for place, kind in enumerate(kinds):
        block = f"{d}block.{place}."
        out |= {"r": res(block, ch, ch), "a": attn(block, ch), "u": res(f"{block}block.", ch, ch)}[kind]
    out |= {f"{d}norm_out.weight": (ch,), f"{d}norm_out.bias": (ch,)}
    if ds == 4:
        out |= conv(f"{d}conv_out.0.", ch, ch) | res(f"{d}conv_out.1.", ch, ch) | conv(f"{d}conv_out.2.", ch, ch)
    else:
        out |= conv(f"{d}conv_out.", ch, ch)
    if ds >= 32 and up2x:
        out |= res(f"{d}ada.block.", ch, ch)
    return out


@pytest.mark.parametrize(
    ("ds", "up2x"), [(4, True), (8, True), (16, True), (32, True), (128, True), (32, False), (128, False)]
)
def test_published_condition_codecs_of_every_stride_have_a_place(ds: int, up2x: bool) -> None:
    args = {"in_channels": 3, "patch_size": 16, "num_groups": 4, "hidden_size": 32, "hidden_size_x": 4}
    args |= {"num_blocks": 2, "num_cond_blocks": 1, "nerf_mlpratio": 2, "ds": ds, "codebook_bits": 4, "up2x": up2x}
    config = config_from_published(args, latent=False, sampling={})
    assert config.condition.stride == (ds if up2x else ds // 2)
    with torch.device("meta"):
        ours = {k: tuple(v.shape) for k, v in CoD(config).condition_codec.state_dict().items()}
    theirs = published_codec(ds, 32, up2x=up2x)
    renamed = {rename(key, config).removeprefix("condition_codec."): shape for key, shape in theirs.items()}
    assert renamed == ours


def test_saving_and_loading_are_inverse(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(tmp_path / "m", Parts(model))
    loaded = load_codec(tmp_path / "m", name="m", device=CPU)
    assert loaded.model.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert loaded.model_id == catalogue.model_id(catalogue.read_config(tmp_path / "m"))


def test_many_may_save_one_model_at_once(tmp_path: Path) -> None:
    parts = Parts(tiny_model())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: save_model(tmp_path / "m", parts), range(16)))
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    load_codec(tmp_path / "m", name="m", device=CPU)


def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codling.weights.store.file_sha256", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_model(tmp_path / "m", Parts(tiny_model()))
    assert not any(tmp_path.iterdir())


def test_the_directory_of_a_run_is_no_model_and_says_where_its_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run", "linear"):
        save_model(tmp_path / name / "model", Parts(tiny_model()))
    with pytest.raises(ModelError, match=r"directory of a training run; its model is .*run/model"):
        codling.load(tmp_path / "run")
    codling.load(tmp_path / "run" / "model")
    # One that is called as a model is does not hide it.
    monkeypatch.chdir(tmp_path)
    assert codling.load("linear").codec_id is CodecId.DIFFC


def test_the_id_follows_weights_and_configuration(tmp_path: Path) -> None:
    ids = set()
    for number, model in enumerate([tiny_model(), tiny_model(seed=1), tiny_model(tiny_config(guidance=2.0))]):
        save_model(tmp_path / str(number), Parts(model))
        ids.add(catalogue.model_id(catalogue.read_config(tmp_path / str(number))))
    assert len(ids) == 3


@pytest.mark.parametrize(("precision", "error"), [("float32", 0), ("float16", 1e-3), ("int8", 1.2e-2)])
def test_packing_loses_what_it_should(precision: str, error: float) -> None:
    state = {"w": torch.randn(64, 128), "b": torch.randn(64), "exact": torch.randn(64, 128)}
    stored = pack(state, precision, exact=frozenset({"exact"}))
    back = unpack(stored)
    assert set(back) == set(state)
    assert torch.equal(back["exact"], state["exact"])
    worst = (back["w"] - state["w"]).abs().max() / state["w"].abs().max()
    assert worst <= error
    if precision == "int8":
        assert stored["w"].dtype == torch.int8
        with pytest.raises(ModelError, match=r"no w.scale"):
            unpack({"w": stored["w"]})


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    save_model(directory, Parts(tiny_model()))
    config = (directory / "config.json").read_text()
    weights = (directory / "model.safetensors").read_bytes()

    (directory / "model.safetensors").write_bytes(weights[:-1] + b"\0")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        registry.load(directory, device=CPU)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        registry.load(directory, device=CPU)
    for text, message in [("{", "not JSON"), ('{"format": 9}', "update codling"), ("[]", "update codling")]:
        (directory / "config.json").write_text(text)
        with pytest.raises(ModelError, match=message):
            registry.load(directory, device=CPU)
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "config.json").write_text(config.replace('"codebook_size": 12', '"codebook_size": 13'))
    with pytest.raises(ModelError, match=r"of another shape: .*quantiser"):
        registry.load(directory, device=CPU)
    (directory / "config.json").write_text(config.replace('"stride"', '"strid"'))
    with pytest.raises(ConfigError, match=r"did you mean .*stride"):
        registry.load(directory, device=CPU)


def test_an_unreadable_model_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CODLING_MODELS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    for name, config in (("a", b"{"), ("b", b"\xff"), ("c", b'{"format": 9}'), ("d", b"[" * 100_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes(config)
    (tmp_path / "e" / "config.json").mkdir(parents=True)
    save_model(tmp_path / "whole", Parts(tiny_model()))
    number = catalogue.model_id(catalogue.read_config(tmp_path / "whole"))

    assert registry.load("whole", device=CPU).model_id == number
    assert registry.load_by_id(number, device=CPU, codec=CodecId.COD).name == "whole"
    with pytest.raises(ModelError, match=rf"a unreadable, .*whole {number:06x}"):
        catalogue.find_id(number ^ 1)
    for name, reason in [
        ("a", "not JSON"),
        ("b", "not JSON"),
        ("c", "format 9"),
        ("d", "not JSON"),
        ("e", "directory"),
    ]:
        with pytest.raises(ModelError, match=rf"model '{name}' cannot be used: .*{reason}"):
            registry.load(name, device=CPU)

    app(["models"], standalone_mode=False)
    rows = {row.split()[0]: row for row in capsys.readouterr().out.splitlines() if row}
    assert f"{tmp_path}/c/config.json has format 9" in rows["c"].partition("unreadable: ")[2]
    assert f"{number:06x}" in rows["whole"]
    assert "unreadable:" not in rows["whole"]


@pytest.mark.parametrize("groups", [11, 13])
def test_index_tables_must_be_those_of_the_codebook(tmp_path: Path, groups: int) -> None:
    tables = IndexModel(np.zeros(groups, np.uint8), np.ones((4, groups), np.uint16))
    save_model(tmp_path, Parts(tiny_model(), index_model=tables))
    with pytest.raises(ModelError, match=rf"codebooks of \[{groups}\], wanted \[12\]"):
        registry.load(tmp_path, device=CPU)


def test_index_tables_must_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = IndexModel(np.zeros(12, np.uint8), np.ones((4, 12), np.uint16))
    object.__setattr__(tables, "weights", tables.weights[1:])
    save_model(tmp_path / "rows", Parts(tiny_model(), index_model=tables))
    monkeypatch.setattr(store, "fields", lambda model: fields(model)[:1])
    save_model(tmp_path / "lost", Parts(tiny_model(), index_model=tables))
    monkeypatch.undo()
    for name in ("rows", "lost"):
        with pytest.raises(ModelError, match="tables index_model of the model are damaged"):
            registry.load(tmp_path / name, device=CPU)


def test_error_tables_must_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = ErrorTable(np.array([1, 1023]), np.array([0, 100]), np.zeros((2, 3, 2), np.int64))
    monkeypatch.setattr(store, "ERROR_PARTS", ("levels", "edges"))
    save_model(tmp_path / "lost", Parts(tiny_model(), error_tables={True: Tables(table)}))
    monkeypatch.undo()
    object.__setattr__(table, "log_error", table.log_error[1:])
    save_model(tmp_path / "short", Parts(tiny_model(), error_tables={True: Tables(table)}))
    for name in ("lost", "short"):
        with pytest.raises(ModelError, match=r"tables error_table\.conditional of the model are damaged"):
            registry.load(tmp_path / name, device=CPU)


def test_hub_models_come_from_a_mirror_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden, state = published("cod_pixel")
    mirror = tmp_path / "hub" / "jzyustc" / "CoD" / "cod"
    mirror.mkdir(parents=True)
    monkeypatch.setenv("CODLING_HUB", str(tmp_path / "hub"))
    monkeypatch.setenv("CODLING_MODELS", str(tmp_path / "models"))
    with pytest.raises(ModelError, match=r"put cod/CoD_pixel_vpred\.yaml of jzyustc/CoD there"):
        registry.load("cod-pixel", device=CPU)
    torch.save(state, mirror / "CoD_pixel_vpred.pt")
    (mirror / "CoD_pixel_vpred.yaml").write_text(published_yaml(golden))
    first = registry.load("cod-pixel", device=CPU)
    (mirror / "CoD_pixel_vpred.pt").unlink()
    again = registry.load("cod-pixel", device=CPU)
    assert again.model_id == first.model_id
    assert registry.load_by_id(first.model_id, device=CPU, codec=CodecId.COD).name == "cod-pixel"


def test_without_a_network_the_error_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: object) -> None:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.delenv("CODLING_HUB", raising=False)
    monkeypatch.setenv("CODLING_MODELS", str(tmp_path))
    with pytest.raises(ModelError, match=r"DIR/jzyustc/CoD/cod/CoD_latent_vpred.yaml and set CODLING_HUB=DIR"):
        registry.load("cod-latent", device=CPU)


def test_configurations_round_trip_and_name_wrong_keys() -> None:
    config = tiny_config()
    assert from_dict(CoDConfig, to_dict(config)) == config
    assert override(config, ["guidance=2", "condition.codebook_size=9"]).condition.codebook_size == 9
    for assignment, message in [
        ("guidence=1", "did you mean guidance"),
        ("condition.strid=4", "did you mean condition.stride"),
        ("guidance", "write key=value"),
        ("tile=big", "wanted int"),
        ("condition=3", "wanted a table"),
        ("tile=65", "multiples of 16"),
    ]:
        with pytest.raises(ConfigError, match=message):
            override(config, [assignment])
