"""The mean of several models' weights: better than each where all come of one training (Wortsman et al. 2022)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from codling.errors import ConfigError
from codling.weights.store import Parts, load_parts


def average(directories: Sequence[Path], shares: Sequence[float] = ()) -> Parts:
    """Model directories -> one model, `shares` of each, or as much of all; shares need not sum to 1.

    What is the same in all, such as frozen codebooks, stays so to the bit. Tables and settings of codecs are those of
    the first. Raises ConfigError unless there are two models or more of one configuration, with a share above 0 each.
    """
    shares = shares or [1.0] * len(directories)
    if len(directories) < 2 or len(shares) != len(directories) or min(shares) <= 0:
        raise ConfigError(
            f"a mean wants two models or more and a share above 0 for each, got {len(directories)} models and shares "
            f"{', '.join(f'{share:g}' for share in shares)}"
        )
    first, *others = (load_parts(directory, device=torch.device("cpu")) for directory in directories)
    for directory, other in zip(directories[1:], others, strict=True):
        if type(other.model) is not type(first.model) or other.model.config != first.model.config:
            raise ConfigError(
                f"{directory} has another configuration than {directories[0]}; only models of one kind and size, that "
                "went on from one training, have a mean"
            )
    states = [parts.model.state_dict() for parts in (first, *others)]
    mean = {name: _mean([state[name] for state in states], shares) for name in states[0]}
    first.model.load_state_dict(mean)
    return first


def _mean(tensors: list[Tensor], shares: Sequence[float]) -> Tensor:
    if all(torch.equal(tensor, tensors[0]) for tensor in tensors):
        return tensors[0]
    weighted = sum(share * tensor.double() for share, tensor in zip(shares, tensors, strict=True)) / sum(shares)
    return torch.as_tensor(weighted).to(tensors[0].dtype)
