"""Samplers: functions `(velocity, state, grid) -> state` that integrate dx/dt = velocity(x, t) over a grid of times.

`velocity(x, t)` takes the state (B, ...) and times (B,); the grid is an increasing `(n + 1,)` tensor.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from codling.configuration import suggest
from codling.diffusion.guidance import VelocityFunction
from codling.errors import ConfigError

Sampler = Callable[[VelocityFunction, Tensor, Tensor], Tensor]


def euler(velocity: VelocityFunction, state: Tensor, grid: Tensor) -> Tensor:
    """First order, one call a step."""
    return adams_bashforth(velocity, state, grid, order=1)


def heun(velocity: VelocityFunction, state: Tensor, grid: Tensor) -> Tensor:
    """Second order, two calls a step: Euler to the step's end, then the mean of both slopes."""
    for start, end in pairwise(_checked(grid)):
        state = _heun_step(velocity, state, velocity(state, _batch(start, state)), start, end)
    return state


def adams_bashforth(velocity: VelocityFunction, state: Tensor, grid: Tensor, *, order: int = 2) -> Tensor:
    """Order 1 to 4, one call a step: extrapolates the polynomial through the last `order` velocities.

    Weights are integrated over the true times, so uneven grids keep the order. Early steps have fewer velocities to
    go by: orders 1 and 2 start with Euler (the published `adam2`); order 3 starts with one Heun step and order 4 with
    two of Kutta's third-order steps, 1 and 4 calls more, without which their global order would be 2.
    """
    if order not in (1, 2, 3, 4):
        raise ConfigError(f"Adams-Bashforth has order 1 to 4 here, got {order}")
    times = _checked(grid)
    starter = {3: _heun_step, 4: _kutta_step}.get(order)
    history: list[Tensor] = []
    for index, (start, end) in enumerate(pairwise(times)):
        history = [*history, velocity(state, _batch(start, state))][-order:]
        if starter is not None and index < order - 2:
            state = starter(velocity, state, history[-1], start, end)
            continue
        nodes = times[index + 1 - len(history) : index + 1]
        for weight, past in zip(lagrange_integrals(nodes, start, end), history, strict=True):
            state = state + weight * past
    return state


def _heun_step(velocity: VelocityFunction, state: Tensor, first: Tensor, start: float, end: float) -> Tensor:
    h = end - start
    second = velocity(state + h * first, _batch(end, state))
    return state + h / 2 * (first + second)


def _kutta_step(velocity: VelocityFunction, state: Tensor, first: Tensor, start: float, end: float) -> Tensor:
    h = end - start
    second = velocity(state + h / 2 * first, _batch(start + h / 2, state))
    third = velocity(state + h * (2 * second - first), _batch(end, state))
    return state + h / 6 * (first + 4 * second + third)


def lagrange_integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Integral over [start, end] of each Lagrange basis polynomial on `nodes`."""
    integrals = []
    for j, node in enumerate(nodes):
        # Coefficients of prod (t - m) / (node - m), lowest power first, with times counted from `start` for accuracy.
        coefficients = [1.0]
        for m in [*nodes[:j], *nodes[j + 1 :]]:
            scale, root = 1 / (node - m), m - start
            shifted = [0.0, *coefficients]
            coefficients = [
                scale * (high - root * low) for high, low in zip(shifted, [*coefficients, 0.0], strict=True)
            ]
        length = end - start
        integrals.append(sum(c * length ** (k + 1) / (k + 1) for k, c in enumerate(coefficients)))
    return integrals


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "adams2": partial(adams_bashforth, order=2),
    "adams3": partial(adams_bashforth, order=3),
    "adams4": partial(adams_bashforth, order=4),
}


def sampler(name: str) -> Sampler:
    """The sampler of that name. Raises ConfigError naming the nearest ones."""
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}{suggest(name, SAMPLERS)}")
    return SAMPLERS[name]


def _checked(grid: Tensor) -> list[float]:
    times: list[float] = grid.tolist()
    if len(times) < 2 or any(b <= a for a, b in pairwise(times)):
        raise ConfigError(f"a grid needs at least two increasing times, got {times}")
    return times


def _batch(time: float, state: Tensor) -> Tensor:
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    return torch.full((state.shape[0],), time, device=state.device, dtype=dtype)
