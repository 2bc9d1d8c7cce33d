"""Networks for weights that are about to be loaded."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from codling.models.cod import CoD
from codling.models.oscar import Oscar
from codling.nn.uninitialised import uninitialised
from tests.conftest import tiny_config
from tests.tiny_oscar import CONFIG


@pytest.mark.parametrize("make", [lambda: CoD(tiny_config()), lambda: Oscar(CONFIG), lambda: nn.Linear(3, 5)])
def test_everything_is_there_but_its_values(make: object) -> None:
    with uninitialised():
        empty = make()  # type: ignore[operator]
    whole = make()  # type: ignore[operator]
    assert {name: value.shape for name, value in empty.state_dict().items()} == {
        name: value.shape for name, value in whole.state_dict().items()
    }
    assert all(value.is_meta for value in empty.state_dict().values())
    empty.load_state_dict(whole.state_dict(), assign=True)
    assert all(torch.equal(a, b) for a, b in zip(empty.parameters(), whole.parameters(), strict=True))


def test_outside_of_it_weights_are_drawn() -> None:
    with uninitialised():
        nn.Linear(3, 5)
    layer = nn.Linear(3, 5)
    assert not layer.weight.is_meta
    assert layer.weight.detach().std() > 0


@pytest.mark.parametrize("name", ["cod-xs", "oscar-s", "diffc-xs", "linear"])
def test_loading_a_model_does_not_load_torchs_compiler(name: str) -> None:
    """Its import takes longer than the model's."""
    program = f"import sys, codling; codling.load({name!r}, device='cpu'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
