"""Rectified flow: inverse pairs, order of convergence of every sampler, guidance that costs what it should."""

import math

import pytest
import torch
from torch import Tensor

from codling.diffusion import path
from codling.diffusion.grid import uniform_grid
from codling.diffusion.guidance import guided
from codling.diffusion.samplers import SAMPLERS, adams_bashforth, lagrange_integrals, sampler
from codling.errors import ConfigError

ORDERS = {"euler": 1, "heun": 2, "adams2": 2, "adams3": 3, "adams4": 4}


def test_every_sampler_has_an_order_to_check() -> None:
    assert set(ORDERS) == set(SAMPLERS)


def uneven_grid(steps: int) -> Tensor:
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return u + 0.6 * torch.sin(2 * math.pi * u) / (2 * math.pi)


@pytest.mark.parametrize("grid", [uneven_grid, uniform_grid], ids=["uneven", "uniform"])
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name: str, grid: object) -> None:
    """dx/dt = (cos 3t) x has the solution x_0 exp(sin(3t) / 3)."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.cos(3 * t)[:, None] * x

    start = torch.tensor([[0.7], [-1.3]], dtype=torch.float64)
    exact = start * math.exp(math.sin(3) / 3)
    errors = [float((SAMPLERS[name](velocity, start, grid(n)) - exact).abs().max()) for n in (64, 128)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[name], abs=0.25)


def test_straight_paths_are_exact_in_one_step() -> None:
    noise, data = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    for name in SAMPLERS:
        out = SAMPLERS[name](lambda x, t: path.velocity(noise, data), noise, uniform_grid(1))
        torch.testing.assert_close(out, data)


def test_calls_per_step() -> None:
    calls = {}
    for name, run in SAMPLERS.items():
        count = 0

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return -x

        run(velocity, torch.ones(1, 1), uniform_grid(10))
        calls[name] = count
    assert calls == {"euler": 10, "heun": 20, "adams2": 10, "adams3": 11, "adams4": 14}


def test_lagrange_weights_integrate_polynomials_exactly() -> None:
    nodes, start, end = [0.1, 0.25, 0.3, 0.55], 0.55, 0.9
    weights = lagrange_integrals(nodes, start, end)
    for power in range(4):
        exact = (end ** (power + 1) - start ** (power + 1)) / (power + 1)
        assert sum(w * n**power for w, n in zip(weights, nodes, strict=True)) == pytest.approx(exact, rel=1e-10)


def test_path_conversions_are_inverse() -> None:
    noise, data, t = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 4, 4).double(), torch.tensor([0.0, 0.4, 1.0])
    state, v = path.interpolate(noise, data, t), path.velocity(noise, data)
    torch.testing.assert_close(path.data_from_velocity(state, v, t), data)
    torch.testing.assert_close(path.noise_from_velocity(state, v, t), noise)


def test_time_of_the_wrong_shape_is_refused_not_broadcast() -> None:
    x = torch.randn(2, 3, 4, 4)
    for t in (torch.rand(4), torch.rand(()), torch.rand(2, 1)):
        with pytest.raises(ConfigError, match="one entry a picture"):
            path.interpolate(x, x, t)


def test_published_grid() -> None:
    grid = uniform_grid(25, last_step=0.04)
    torch.testing.assert_close(grid, torch.linspace(0, 1, 26, dtype=torch.float64))
    assert uniform_grid(5, last_step=0.04).tolist() == pytest.approx([0, 0.24, 0.48, 0.72, 0.96, 1])
    assert uniform_grid(1, last_step=0.04).tolist() == [0, 1]


def test_guidance_calls_the_unconditional_network_only_where_it_counts() -> None:
    calls: list[float] = []

    def unconditional(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t[0]))
        return torch.zeros_like(x)

    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return torch.ones_like(x)

    x = torch.zeros(1, 1)
    assert guided(conditional, unconditional, strength=1.0) is conditional
    velocity = guided(conditional, unconditional, strength=3.0, interval=(0.1, 0.8))
    values = [float(velocity(x, torch.tensor([t]))) for t in (0.05, 0.5, 0.9)]
    assert values == [1.0, 3.0, 1.0]
    assert calls == [0.5]


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="adams2"):
        sampler("adam2")
    with pytest.raises(ConfigError, match="order 1 to 4"):
        adams_bashforth(lambda x, t: x, torch.ones(1, 1), uniform_grid(3), order=5)
    with pytest.raises(ConfigError, match="increasing"):
        sampler("euler")(lambda x, t: x, torch.ones(1, 1), torch.tensor([0.0, 0.5, 0.5]))
    with pytest.raises(ConfigError, match="at least 1 step"):
        uniform_grid(0)
    with pytest.raises(ConfigError, match="last step"):
        uniform_grid(4, last_step=1.5)
    with pytest.raises(ConfigError, match="guidance"):
        guided(lambda x, t: x, lambda x, t: x, strength=-1)
