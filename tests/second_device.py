"""A stand-in for a GPU: tensors whose values are on the CPU, and that meet others only as those of a GPU may.

While the mode is on, `x.to("cuda")` and `device="cuda"` make tensors that say they are there. Operations on them and
on others of the CPU fail as on a GPU: only numbers (tensors without dimensions) and indices mix, and numpy has no view
of them. So what a codec forgets to move is found without a GPU, and what it computes can be compared to the bit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
TO_NUMPY = {Tensor.numpy, Tensor.__array__}
# What reads or writes a tensor at places that tensors of the CPU may name.
AT_PLACES = {Tensor.__getitem__, Tensor.__setitem__}
# What takes tensors of two devices: a copy, and what moves a module's parameters.
ACROSS = (Tensor.copy_, Tensor.data.__set__, torch._has_compatible_shallow_copy_type)  # type: ignore[attr-defined]


class SecondDevice(TorchFunctionMode):
    """Within it, there is a second device, `DEVICE`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return DEVICE if _there(args[0]) else torch.device("cpu")
        if func is Tensor.cpu:
            return _mark(args[0].clone(), False)
        if func in TO_NUMPY and _there(args[0]):
            raise TypeError("a tensor of the second device has no numpy view; call .cpu() first")
        args, kwargs, asked = _without_device(func, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [_there(tensor) for tensor in (tensors[:1] if func in AT_PLACES else tensors) if tensor.ndim]
        if func in ACROSS:
            out = func(*args, **kwargs)
            if func == Tensor.data.__set__:  # type: ignore[attr-defined]
                _mark(args[0], _there(args[1]))
            return out
        if asked is None and len(set(there)) == 2:
            raise RuntimeError(f"{resolve_name(func) or func}: tensors on two devices")
        out = func(*args, **kwargs)
        on_device = any(map(_there, tensors)) if asked is None else asked
        if asked is not None and out is not None and any(out is tensor for tensor in tensors):
            out = out.clone()
        return tree_map_only(Tensor, lambda tensor: _mark(tensor, on_device), out)


def _there(tensor: Tensor) -> bool:
    return getattr(tensor, "on_second_device", False)


def _mark(tensor: Tensor, there: bool) -> Tensor:
    tensor.on_second_device = there  # type: ignore[attr-defined]
    return tensor


def _without_device(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], bool | None]:
    """Arguments for the CPU, and whether those asked for the second device; None if they asked for none."""
    found = [kwargs["device"]] if kwargs.get("device") is not None else []
    if func is Tensor.to:
        found += [(DEVICE if _there(arg) else "cpu") if isinstance(arg, Tensor) else arg for arg in args[1:]]
        found = [each for each in found if isinstance(each, str | torch.device)]
    if not found:
        return args, kwargs, None
    asked = torch.device(found[0]).type == DEVICE.type
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "cpu"}
    if func is Tensor.to:
        args = tuple("cpu" if isinstance(arg, str | torch.device) else arg for arg in args)
    return args, kwargs, asked


def move(module: nn.Module) -> None:
    """Put a module on the second device."""
    for tensor in (*module.parameters(), *module.buffers()):
        _mark(tensor, True)
