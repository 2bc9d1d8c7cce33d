"""Operations of a step: counts that can be done by hand, and when they are taken anew."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codling.training.cod_run import CoDRun
from codling.training.operations import StepCounter, counted
from tests.training import CPU, tiny_run


def test_a_small_network_has_the_operations_that_one_counts_by_hand() -> None:
    """A layer of n multiplications takes 2 n forward, 2 n for its weights' gradient and 2 n for its input's."""
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.SiLU(), nn.Conv2d(5, 7, 2, stride=2))
    image = torch.randn(2, 3, 8, 12)
    first, second = 2 * 5 * 8 * 12 * 3 * 9, 2 * 7 * 4 * 6 * 5 * 4
    out, forward = counted(lambda: network(image))
    assert out.shape == (2, 7, 4, 6)
    assert forward == 2 * (first + second)
    # Pictures need no gradient.
    assert counted(lambda: out.sum().backward())[1] == 2 * (first + 2 * second)


def test_attention_counts() -> None:
    """Queries with keys, and weights with values: 2 B N^2 D operations each."""
    q, k, v = (torch.randn(2, 3, 6, 8, requires_grad=True) for _ in range(3))
    out, forward = counted(lambda: F.scaled_dot_product_attention(q, k, v))
    products = 2 * 2 * 3 * 6 * 6 * 8
    assert forward == 2 * products
    # Two products for each gradient of the two, and the weights once more, which are not kept.
    assert counted(lambda: out.sum().backward())[1] == 5 * products


def test_operations_are_counted_once_a_phase() -> None:
    counter, calls = StepCounter(), []
    weight = torch.randn(4, 4)

    def step(image: Tensor) -> int:
        calls.append(len(image))
        return len(image @ weight)

    assert [counter.step("a", step, torch.randn(rows, 4)) for rows in (1, 2)] == [(1, 32), (2, 32)]
    assert counter.step("b", step, torch.randn(3, 4)) == (3, 96)
    assert calls == [1, 2, 3]


def test_what_was_counted_first_is_still_compiled_afterwards() -> None:
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        compiled.append(graph)
        return graph.forward

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b).sin()

    fast, matrix = torch.compile(product, backend=backend), torch.randn(4, 4)
    assert counted(lambda: fast(matrix, matrix))[1] == 128
    assert not compiled
    fast(matrix, matrix)
    assert len(compiled) == 1


def test_counting_changes_no_bit_of_what_is_learned(pictures: Path) -> None:
    """Steps are counted where a run begins, and a run that is resumed begins elsewhere."""
    image = torch.rand(4, 3, 64, 64) * 2 - 1
    plain, other = (CoDRun(tiny_run(pictures), CPU) for _ in range(2))
    for _ in range(3):
        plain.train_step(image)
        counted(lambda: other.train_step(image))
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_phases_of_a_run_take_what_they_compute(pictures: Path) -> None:
    image = torch.rand(4, 3, 64, 64) * 2 - 1

    def operations(**changes: object) -> int:
        run = CoDRun(tiny_run(pictures, **changes), CPU)
        return counted(lambda: run.train_step(image))[1]

    whole, codec = operations(), operations(denoise_from=4)
    frozen, twice = operations(freeze_encoder_from=0), operations(one_step_pass=True)
    assert codec < whole
    assert 0 < frozen < whole
    # A second pass of the transformer, and nothing else, is what it adds.
    assert twice - whole == pytest.approx(whole - codec, rel=0.01)
