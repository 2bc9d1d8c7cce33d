"""Classifier-free guidance (Ho and Salimans 2022) as a wrapper of velocity functions."""

from collections.abc import Callable

from torch import Tensor

from codling.errors import ConfigError

VelocityFunction = Callable[[Tensor, Tensor], Tensor]


def guided(
    conditional: VelocityFunction,
    unconditional: VelocityFunction,
    *,
    strength: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> VelocityFunction:
    """u + strength (c - u) while interval[0] < t < interval[1] (Kynkaanniemi et al. 2024), else c.

    Outside the interval, and everywhere at strength 1, the unconditional network is not called. The time must be the
    same for the whole batch, as samplers have it.
    """
    if strength < 0 or interval[0] > interval[1]:
        raise ConfigError(f"guidance must be at least 0 over an ascending interval, got {strength} over {interval}")
    if strength == 1.0:
        return conditional

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        c = conditional(x, t)
        if not interval[0] < float(t[0]) < interval[1]:
            return c
        u = unconditional(x, t)
        return u + strength * (c - u)

    return velocity
