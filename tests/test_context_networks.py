"""Training of the networks that predict indices, and models that have them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import codling
from codling.bitstream.context_network import ContextNetwork
from codling.bitstream.index_tables import fit_index_model
from codling.bitstream.indices import encode_indices, encode_maps
from codling.errors import ConfigError, ModelError
from codling.training.context_networks import (
    ContextTraining,
    Predictor,
    contexts,
    looks_of,
    rounded,
    train_context_network,
)
from codling.training.index_maps import index_maps, the_better, views
from codling.weights import registry
from codling.weights.store import Parts, load_parts, save_model
from tests.conftest import noise_picture, tiny_model
from tests.test_splitting import run
from tests.tiny_oscar import tiny_oscar
from tests.training import CPU

SYMBOLS = 6
SHORT = ContextTraining(hidden=16, least_steps=300, batch=256, learning_rate=2e-2, warmup=10)


def diagonal(seed: int, *, share: float = 0.9) -> np.ndarray:
    """A map (1, 12, 14) whose indices are mostly one more than those above to the right, and random else."""
    rng = np.random.default_rng(seed)
    out = rng.integers(0, SYMBOLS, (12, 14))
    for row in range(1, 12):
        follows = rng.random(13) < share
        out[row, :13] = np.where(follows, (out[row - 1, 1:] + 1) % SYMBOLS, out[row, :13])
    return out[None]


def silent(_: int, __: float) -> None:
    pass


@pytest.fixture(scope="module")
def trained() -> ContextNetwork:
    return train_context_network([diagonal(n) for n in range(80)], SYMBOLS, SHORT, report=silent)


def test_what_is_trained_is_what_is_stored() -> None:
    """The real numbers' logits are the whole numbers' logits, in bits, to the last digit, wherever they are rounded."""
    torch.manual_seed(0)
    predictor = Predictor(looks_of(2), 50, 24)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.mul_(6)  # some beyond what a byte holds
        around = torch.randint(0, 51, (200, len(predictor.looks)))
        logits = predictor(around).double() * 512
    assert torch.equal(logits, logits.round())
    net = predictor.integers()
    a = np.clip(net.embeddings.astype(int)[np.arange(len(net.looks)), around.numpy()].sum(1), 0, 255)
    b = np.clip((a @ net.mixing.T.astype(int) + net.mixing_bias) >> 6, 0, 255)
    assert np.array_equal(logits.numpy().astype(int), (a + b) @ net.output.T.astype(int) + net.output_bias)
    assert 0 < (a > 0).mean() < 1
    assert (a == 255).any()
    assert (np.abs(net.embeddings.astype(int)) == 127).any()


def test_rounding_has_the_gradient_of_the_value() -> None:
    x = torch.tensor([0.2, -0.26, 9.0], requires_grad=True)
    y = rounded(x, 16, 127)
    assert y.tolist() == [0.1875, -0.25, 127 / 16]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 1]


def test_a_network_learns_what_tables_cannot_see(trained: ContextNetwork) -> None:
    """The index above to the right tells nearly all: .9 of the time, log2 of it and a tenth of the rest's 2.6 bits."""
    others = [diagonal(n) for n in range(1000, 1040)]
    count = sum(indices.size for indices in others)

    def bits(model: object) -> float:
        return 8 * sum(len(encode_indices(m[0], SYMBOLS, model)) - 1 for m in others) / count  # type: ignore[arg-type]

    tables = fit_index_model([diagonal(n)[0] for n in range(80)], SYMBOLS)
    assert bits(tables) > 2.3
    assert bits(trained) < 1.3


def test_a_network_learns_from_the_map_before() -> None:
    rng = np.random.default_rng(0)

    def both(seed: int) -> np.ndarray:
        first = np.random.default_rng(seed).integers(0, SYMBOLS, (9, 8))
        return np.stack([first, (first * 5 + 1) % SYMBOLS])

    net = train_context_network([both(n) for n in range(80)], SYMBOLS, SHORT, report=silent)
    assert net.maps_before == 1
    maps = both(2000)
    even = fit_index_model([rng.integers(0, SYMBOLS, (40, 40))], SYMBOLS)
    alone, together = (len(encode_maps(maps[:depth], SYMBOLS, [even, net][:depth])) for depth in (1, 2))
    # 72 indices more, for less than half a bit each.
    assert together - alone < 72 * 0.5 / 8


def test_the_same_seed_makes_the_same_network(trained: ContextNetwork) -> None:
    again = train_context_network([diagonal(n) for n in range(80)], SYMBOLS, SHORT, report=silent)
    assert all(
        np.array_equal(getattr(trained, name), getattr(again, name)) for name in ContextNetwork.__dataclass_fields__
    )


def test_contexts_are_what_the_coder_sees() -> None:
    maps = np.arange(24).reshape(2, 3, 4)
    around = contexts(maps, np.array(((0, 0, -1), (0, -1, 1), (1, 0, 0), (1, 1, 0))), 99)
    assert around.shape == (12, 4)
    assert around[0].tolist() == [99, 99, 0, 4]
    assert around[5].tolist() == [16, 14, 5, 9]
    assert around[11].tolist() == [22, 99, 11, 99]


def test_views_are_of_many_sizes() -> None:
    pictures = [noise_picture(90, 70), noise_picture(1, 1)]
    found = list(views(pictures, 6, seed=0))
    assert len(found) == 12
    assert len({view.shape for view in found}) > 5
    assert all(min(view.shape[:2]) >= 1 and view.dtype == np.uint8 for view in found)
    assert all(np.array_equal(a, b) for a, b in zip(found, views(pictures, 6, seed=0), strict=True))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(6):
        # Flat, but for an edge: indices are mostly those beside them.
        picture = np.empty((90 + 16 * n, 130, 3), np.uint8)
        picture[:, :60], picture[:, 60:] = rng.integers(0, 256, (2, 3))
        Image.fromarray(picture).save(folder / f"{n}.png")
    return folder


def learned(model: Path, pictures: Path, output: Path) -> str:
    options = ("--data", pictures, "--validation", pictures, "--epochs", 0.5, "--hidden", 12, "--precision", "float32")
    return run("weights", "predict", model, "-o", output, *options)


def test_a_cod_model_gets_a_network_by_command(tiny_directory: Path, pictures: Path, tmp_path: Path) -> None:
    said = learned(tiny_directory, pictures, tmp_path / "out")
    assert "stack 0: " in said
    assert "map 0: step 800, " in said
    codec = codling.load(tmp_path / "out")
    assert isinstance(codec.index_model, ContextNetwork)  # type: ignore[attr-defined]
    sizes = []
    for path in sorted(pictures.iterdir()):
        before, after = (codling.encode(path, model=model) for model in (tiny_directory, tmp_path / "out"))
        sizes.append((len(before), len(after)))
        # Only how indices are coded differs, so the pictures are the same.
        assert codling.decode(after, model=codec) == codling.decode(before, model=tiny_directory)
    assert all(after <= before for before, after in sizes)
    assert sum(after for _, after in sizes) < 0.95 * sum(before for before, _ in sizes)


def test_an_oscar_model_gets_a_network_for_each_map(pictures: Path, tmp_path: Path) -> None:
    model = tiny_oscar()
    save_model(tmp_path / "in", Parts(model))
    said = learned(tmp_path / "in", pictures, tmp_path / "out")
    parts = load_parts(tmp_path / "out", device=CPU)
    depths = [level.depth for level in model.levels]
    assert [net.maps_before for net in parts.index_models] == [depth - 1 for depth in depths]
    assert said.count("bits an index before") == depths.count(1)
    path = next(iter(pictures.iterdir()))
    for level in range(len(depths)):
        before, after = (codling.encode(path, model=tmp_path / name, level=level) for name in ("in", "out"))
        assert len(after) <= len(before)
        assert codling.decode(after, model=tmp_path / "out") == codling.decode(before, model=tmp_path / "in")


def test_what_is_worse_is_not_kept() -> None:
    """By stack: the first is better after training, the second before, and one that had nothing gets something."""

    def striped(seed: int) -> np.ndarray:
        return np.repeat(np.random.default_rng(seed).integers(0, 4, (1, 12, 1)), 14, 2)

    model, others = tiny_oscar(), [striped(n) for n in range(1000, 1010)]
    sizes = [level.codebook_size for level in model.levels]
    assert [level.depth for level in model.levels] == [1, 1, 2]
    good, bad = ([fit_index_model([maps[0] for maps in found], size) for size in sizes]
                 for found in ([striped(n) for n in range(80)], [np.arange(12).reshape(1, 3, 4) % 4]))  # fmt: skip
    before, after = Parts(model, index_models=(bad[0], *good[1:])), Parts(model, index_models=(good[0], *bad[1:]))
    held_out = [others, [np.concatenate([maps, maps]) for maps in others]]
    chosen, was, now = the_better(before, after, held_out)
    assert now[0] < was[0]
    assert was[1] < now[1]
    assert chosen.index_models == tuple(good)
    assert the_better(after, before, held_out)[0].index_models == tuple(good)
    assert the_better(Parts(model), after, held_out)[0].index_models == after.index_models


def test_maps_are_those_that_files_hold(tiny_directory: Path) -> None:
    parts = load_parts(tiny_directory, device=CPU)
    ((found,),) = index_maps(parts, [noise_picture(50, 90)])
    codec = codling.load(tiny_directory)
    assert found.shape == (1, 4, 6)
    data = codling.encode(Image.fromarray(noise_picture(50, 90)), model=codec)
    assert data.endswith(codec.encode_indices(torch.from_numpy(found[0])))  # type: ignore[attr-defined]


def test_a_model_without_indices_says_so(pictures: Path, tmp_path: Path) -> None:
    directory = registry.find("linear").directory
    assert directory is not None
    with pytest.raises(ConfigError, match="wanted a CoD or an OSCAR model"):
        learned(directory, pictures, tmp_path / "out")


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="hidden must be 1 to 256, got 257"):
        ContextTraining(hidden=257)
    with pytest.raises(ConfigError, match="epochs must be above 0, got 0"):
        ContextTraining(epochs=0)


def test_networks_must_fit_their_model(trained: ContextNetwork, tmp_path: Path) -> None:
    save_model(tmp_path / "size", Parts(tiny_model(), index_model=trained))
    with pytest.raises(ModelError, match=r"codebooks of \[6\], wanted \[12\]"):
        registry.load(tmp_path / "size", device=CPU)
    looking = Predictor(looks_of(1), 12, 4).integers()
    save_model(tmp_path / "back", Parts(tiny_model(), index_model=looking))
    with pytest.raises(ModelError, match=r"look \[1\] maps back, but pictures have \[1\] maps"):
        registry.load(tmp_path / "back", device=CPU)
    looking.looks[0, 1] = 2
    save_model(tmp_path / "ahead", Parts(tiny_model(), index_model=looking))
    with pytest.raises(ModelError, match="tables index_model of the model are damaged"):
        registry.load(tmp_path / "ahead", device=CPU)
