"""The straight path x_t = t x_1 + (1 - t) x_0 between noise x_0 and data x_1 (Liu et al. 2023), and its algebra.

Every conversion is a closed form; nothing divides by `t` or by `1 - t`.
"""

from torch import Tensor

from codling.errors import ConfigError


def expand(t: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...) so that it multiplies `like` (B, ...). Raises ConfigError on any other shape."""
    if t.shape != like.shape[:1]:
        raise ConfigError(f"time must have one entry a picture, shape {tuple(like.shape[:1])}, got {tuple(t.shape)}")
    return t.view(-1, *[1] * (like.ndim - 1))


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """State x_t."""
    time = expand(t, data)
    return time * data + (1 - time) * noise


def velocity(noise: Tensor, data: Tensor) -> Tensor:
    """dx_t/dt = x_1 - x_0, the same at every time."""
    return data - noise


def data_from_velocity(state: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """x_1 = x_t + (1 - t) v: the data that a velocity points at."""
    return state + (1 - expand(t, state)) * v


def noise_from_velocity(state: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """x_0 = x_t - t v: the noise that a velocity comes from."""
    return state - expand(t, state) * v
