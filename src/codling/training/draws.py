"""Random numbers of a step: a pure function of seed, step and place in the batch, so that all processes agree."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Its multiples are spread over the interval from 0 to 1 as evenly as can be.
GOLDEN = 0.6180339887


def generator(*key: int, device: torch.device) -> torch.Generator:
    """A generator on a device, seeded by numbers, equal to no other key's."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed)


def step_generator(seed: int, step: int) -> torch.Generator:
    """For the small numbers of a whole batch, of which every process takes its places'; on the CPU."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def spread(batch: int, *, seed: int, step: int) -> list[float]:
    """For each place of a batch a number in [0, 1), 1 / batch apart in some order, large and small ones side by side.

    So what is drawn where a number is small is drawn in every process about as often, whatever that costs. All are
    shifted from step to step: a small share of a small batch has its turn.
    """
    shift = float(torch.rand((), generator=step_generator(seed + 2, step)))
    order = sorted(range(batch), key=lambda place: place * GOLDEN % 1)
    return [(order.index(place) / batch + shift) % 1 for place in range(batch)]


def noise_like(image: Tensor, places: Sequence[int], *, seed: int, step: int) -> Tensor:
    """Gaussian noise for states (B, ...) at these places of the batch, drawn where they are: devices differ in it.

    Drawing a large batch on the CPU would keep a GPU waiting.
    """
    rows = [
        torch.randn(image.shape[1:], generator=generator(seed, step, place, device=image.device), device=image.device)
        for place in places
    ]
    return torch.stack(rows)
