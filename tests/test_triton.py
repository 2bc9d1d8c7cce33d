"""Triton's kernels against those on a CPU: interpreted, they find the same; compiled for a GPU, they build.

No test here needs a GPU; where there is one, `codecs.search` compares the two before the first use.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codling.bitstream.prng import philox
from codling.codecs.backbones import DenoiserBackbone
from codling.codecs.base import RateTarget
from codling.codecs.calibration import calibrate
from codling.codecs.diffc import DiffCCodec
from codling.codecs.diffc_stream import DiffCConfig
from codling.codecs.search import gpu_search, search_on
from codling.models.wiener import WienerConfig, WienerFilter, fit_spectrum
from codling.rcc import pfr, trellis
from codling.rcc.trellis import Search
from tests.conftest import noise_picture
from tests.test_diffc import image_of
from tests.triton_problems import BATCH_SCORES, blocks, codec_picture, trellises

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_compiler = pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="Triton interprets here")
CUDA = torch.device("cuda")
TYPES = {"k0": "u32", "k1": "u32", "chunk": "u32", "step": "u32"}


def tiny_diffc(search: Search | None = None) -> DiffCCodec:
    images = [image_of(noise_picture(48, 48, seed=seed)) for seed in range(2)]
    model = WienerFilter(WienerConfig(knots=24))
    model.log_power.copy_(fit_spectrum([image[0] for image in images], 24))
    backbone = DenoiserBackbone(model)
    tables = {False: calibrate(backbone, images, conditional=False, levels=(100, 600, 1000))}
    settings = DiffCConfig(times=(800, 300), threshold=8, memory=8)
    return DiffCCodec(backbone, settings, tables, name="tiny", model_id=1, search=search)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the kernels make of the problems, in a process where Triton interprets."""
    out = tmp_path_factory.mktemp("triton") / "out.npz"
    command = [sys.executable, "-m", "tests.triton_problems", str(out)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of this Triton (3.3 for one) does not work with this numpy (2.4 for one)")
    assert done.returncode == 0, done.stderr
    return np.load(out)


@needs_triton
def test_the_generator_in_a_kernel_has_the_known_answers(interpreted: Any) -> None:
    """The three of the Philox authors' test vectors for Philox4x32-10."""
    assert [" ".join(f"{word:08x}" for word in row) for row in interpreted["words"]] == [
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ]


@needs_triton
@pytest.mark.parametrize("number", range(len(trellises())))
def test_the_trellis_finds_the_message_of_the_cpu(interpreted: Any, number: int) -> None:
    problem = trellises()[number]
    message = trellis.search(**problem)
    assert len(message) > BATCH_SCORES >> (problem["memory"] + int(problem["bits"].max())), "one batch tests too little"
    assert np.array_equal(interpreted[f"message{number}"], message)


@needs_triton
def test_the_block_search_finds_the_index_of_the_cpu(interpreted: Any) -> None:
    assert interpreted["candidates"].tolist() == [pfr.encode(**problem) for problem in blocks()]


@needs_triton
def test_a_picture_has_the_bytes_of_the_cpu(interpreted: Any) -> None:
    payload = tiny_diffc().encode(image_of(codec_picture()), RateTarget(max_bytes=9))
    assert len(payload) == 9
    assert bytes(interpreted["payload"]) == payload


def test_problems_are_not_trivial() -> None:
    for problem in trellises():
        assert len(set(trellis.search(**problem))) > 1
        assert (np.diff(problem["starts"]) % 8).any()
    sizes = np.concatenate([np.diff(problem["starts"]) for problem in trellises()])
    assert {1, 2, 3, 4, 5, 8, 13} <= set(sizes), "all ways to share blocks, with values left over and without"
    assert len({pfr.encode(**problem) for problem in blocks()}) == len(blocks())


@needs_triton
@needs_compiler
@pytest.mark.parametrize("capability", [75, 90])
def test_kernels_compile_for_gpus(capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To machine code, without a GPU, and with no product and sum fused: that would round otherwise than a CPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from codling.rcc import triton_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    floats = dict.fromkeys(("target", "table", "scores", "gain", "penalty", "value", "new"), "*fp32")
    places = dict.fromkeys(("counter", "words", "starts", "bits", "index"), "*i32")
    types = {**TYPES, **floats, **places, "log_arrivals": "*fp64", "best": "*fp64", "back": "*u8"}
    for kernel, sizes in (
        (kernels.draw_words, {"TILE": 256}),
        (kernels.best_candidates, {"TILE": 256}),
        (kernels.score_groups, {"TILE": 256}),
        (kernels.extend_paths, {"STATES": 1024, "TILE": 1024}),
    ):
        signature = {name: "constexpr" if name in sizes else types.get(name, "i32") for name in kernel.arg_names}
        constants = {(kernel.arg_names.index(name),): value for name, value in sizes.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
        assert len(built.asm["cubin"]) > 1000
        assert "fma.rn.f32" not in built.asm["ptx"]


@needs_triton
def test_a_search_that_errs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from codling.codecs.triton_search import TritonSearch

    found = TritonSearch(torch.device("cpu"))
    monkeypatch.setattr(TritonSearch, "words", lambda self, counter, key: philox(counter, key) ^ np.uint32(1))
    with pytest.raises(RuntimeError, match="Philox words"):
        found.check()
    monkeypatch.setattr(TritonSearch, "words", lambda self, counter, key: philox(counter, key))
    monkeypatch.setattr(TritonSearch, "message", lambda self, *a, **k: trellis.search(*a, **k) ^ np.uint8(1))
    with pytest.raises(RuntimeError, match="message"):
        found.check()
    monkeypatch.setattr(TritonSearch, "message", lambda self, *a, **k: trellis.search(*a, **k))
    found.check()


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that Triton may work on")
def test_where_triton_fails_the_cpu_searches_and_says_so() -> None:
    gpu_search.cache_clear()
    with pytest.warns(RuntimeWarning, match="searches on the CPU"):
        find = search_on(CUDA)
    problem = {name: value for name, value in trellises()[0].items() if name != "seed"}
    assert np.array_equal(find(**problem), trellis.search(**problem))


def test_without_triton_the_cpu_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_search.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpu_search(CUDA) is None
    problem = {name: value for name, value in trellises()[0].items() if name != "seed"}
    assert np.array_equal(search_on(CUDA)(**problem), trellis.search(**problem))
    gpu_search.cache_clear()
