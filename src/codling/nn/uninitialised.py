"""Networks without memory or first weights, for weights that are about to be loaded."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

DRAWING = (torch.Tensor.normal_, torch.Tensor.uniform_)


@contextmanager
def uninitialised() -> Iterator[None]:
    """Networks made here have tensors of the right shapes on the device "meta", and nobody draws what is in them.

    On that device even drawing nothing is done by torch's compiler, whose import takes longer than loading a small
    model.
    """
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # What a function of the module does itself is not seen here, so it is left out as a whole.
        if func in DRAWING or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
