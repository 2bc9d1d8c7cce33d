"""What importers of published checkpoints share: reading tensors without unpickling, and a fit that drops nothing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codling.errors import ModelError

# Differences that an error lists.
SHOWN = 10


def read_tensors(path: Path) -> Any:
    """What a file of torch's holds: tensors in plain containers. Raises ModelError on anything else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises a zoo of types on a file that is not a checkpoint
        raise ModelError(f"{path} is not a checkpoint that loads with weights_only=True: {error}") from error


def renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Tensors by our names. Raises ModelError where two would have the same, as one of them would be lost."""
    ours: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if rename(name) in ours:
            raise ModelError(f"two tensors of the checkpoint are our {rename(name)}; one of them is {name}")
        ours[rename(name)] = value
    return ours


def check_fit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, question: str) -> None:
    """Raises ModelError listing tensors that are left over, missing or of another shape, after `question`."""
    problems = [f"not in our model: {name}" for name in sorted(set(given) - set(wanted))]
    problems += [f"missing from the checkpoint: {name}" for name in sorted(set(wanted) - set(given))]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, wanted {tuple(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(given))
        if given[name].shape != wanted[name].shape
    ]
    if problems:
        shown = "\n  ".join(problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ModelError(f"{question}\n  {shown}{more}")
