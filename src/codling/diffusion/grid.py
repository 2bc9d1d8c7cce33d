"""Lists of times for samplers."""

import torch
from torch import Tensor

from codling.errors import ConfigError


def uniform_grid(steps: int, *, last_step: float | None = None) -> Tensor:
    """Times from 0 to 1, `(steps + 1,)` in float64.

    `steps` times are spread evenly from 0 to `1 - last_step`; then comes 1. CoD ends with a step of 0.04, longer or
    shorter than the others; `None`, or a single step, makes all steps equal.
    """
    if steps < 1:
        raise ConfigError(f"a sampler takes at least 1 step, got {steps}")
    if last_step is not None and not 0 < last_step <= 1:
        raise ConfigError(f"the last step must be in (0, 1], got {last_step}")
    if last_step is None or steps == 1:
        last_step = 1 / steps
    times = torch.linspace(0, 1 - last_step, steps, dtype=torch.float64)
    return torch.cat([times, torch.ones(1, dtype=torch.float64)])
