"""Checkpoints: one file, written whole or not at all, that any number of processes can go on from."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codling.errors import ConfigError
from codling.training.engine import whole


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Beside its final place, then renamed: neither a killed run nor a lost machine leaves half a file."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    # The new name is on disk only when its directory is.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(path: Path, *, device: torch.device, lazily: bool = False) -> dict[str, Any]:
    """What `write` wrote. lazily: tensors stay on disk until they are used, for a look at the rest.

    Raises ConfigError on a file that is no checkpoint of a run.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=lazily)
    except FileNotFoundError:
        raise
    except (RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} is not a checkpoint, or is damaged ({reason}); remove it to start over") from error
    if not isinstance(state, dict) or not {"config", "step", "model"} <= set(state):
        raise ConfigError(f"{path} is not a checkpoint of a training run; use another output directory")
    return state


def gathered(state: Any) -> Any:
    """A nested state with every sharded tensor made whole; all processes must take part."""
    if isinstance(state, Tensor):
        return whole(state)
    if isinstance(state, Mapping):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    return state


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor sharded as another one is; one that is sharded already stays as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of every tensor, whole."""
    return {name: value.shape for name, value in state.items()}


def load_module(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors, also into sharded modules."""
    own = module.state_dict()
    module.load_state_dict({name: placed(value, own.get(name, value)) for name, value in state.items()})


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """The same for an optimiser: moments are sharded as their parameters are, counts stay on the CPU. Its settings,
    such as the weight decay, stay its own.

    Raises ConfigError where it is of an optimiser of more or fewer parameters.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    groups = state["param_groups"]
    if (saved := sum(len(group["params"]) for group in groups)) != len(parameters):
        raise ConfigError(
            f"the checkpoint has the optimiser of {saved} tensors, and {len(parameters)} are trained; set what says "
            "which are (freeze_denoiser, codebook) as it was then, or use another output directory"
        )
    moments = {
        number: {key: placed(v, parameters[number]) if v.ndim else v.cpu() for key, v in values.items()}
        for number, values in state["state"].items()
    }
    own = [{**group, "params": then["params"]} for group, then in zip(optimiser.param_groups, groups, strict=True)]
    optimiser.load_state_dict({"state": moments, "param_groups": own})
