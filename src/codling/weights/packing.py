"""Tensors on disk: float32, float16, or 8-bit integers with one scale per output channel."""

from collections.abc import Mapping

import torch
from torch import Tensor

from codling.errors import ModelError
from codling.weights.catalogue import Precision

SCALE = ".scale"
# Smaller tensors (biases, norms) gain nothing from 8 bits and lose the most.
SMALLEST_INT8 = 4096


def pack(
    state: Mapping[str, Tensor], precision: Precision, *, exact: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """State dict -> tensors to store. Names in `exact` stay float32 (codebooks: they decide indices)."""
    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        if precision == "float32" or name in exact:
            stored[name] = value.float()
        elif precision == "int8" and value.ndim >= 2 and value.numel() >= SMALLEST_INT8:
            scale = (value.abs().flatten(1).amax(1) / 127).clamp(min=1e-12).to(torch.float16).float().clamp(min=6e-8)
            stored[name] = (value / _per_channel(scale, value)).round().clamp(-127, 127).to(torch.int8)
            stored[name + SCALE] = scale.to(torch.float16)
        else:
            stored[name] = value.to(torch.float16)
    return stored


def unpack(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, in float32. Raises ModelError where an 8-bit tensor has lost its scale."""
    state: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in stored:
            continue
        if value.dtype == torch.int8:
            if name + SCALE not in stored:
                raise ModelError(f"the 8-bit tensor {name} has no {name + SCALE} beside it; the file is incomplete")
            value = value.float() * _per_channel(stored[name + SCALE].float(), value)
        state[name] = value.float()
    return state


def _per_channel(scale: Tensor, like: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (like.ndim - 1))
