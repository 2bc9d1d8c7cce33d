"""Classifier-free guidance (Ho and Salimans 2022) as a wrapper of velocity functions."""

from collections.abc import Callable

from torch import Tensor

from codling.diffusion.path import expand
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


def score_scaled(velocity: VelocityFunction, scale: float) -> VelocityFunction:
    """The probability flow with its score multiplied by `scale`: above 1 smoother, below 1 grainier.

    On the path the velocity is x / t + (1 - t) / t score(x, t), so scaling the score gives scale v + (1 - scale) x / t;
    only for times above 0.
    """
    if scale <= 0:
        raise ConfigError(f"the score's scale must be above 0, got {scale}")
    if scale == 1.0:
        return velocity

    def scaled(x: Tensor, t: Tensor) -> Tensor:
        return scale * velocity(x, t) + (1 - scale) * x / expand(t, x)

    return scaled
