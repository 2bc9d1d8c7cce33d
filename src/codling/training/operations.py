"""What a step computes, counted in floating-point operations."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

T = TypeVar("T")


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))


def _attention_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, q.shape, k.shape, v.shape))


# PyTorch's formulas, and attention as CPUs compute it, which they lack.
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Counter(TorchDispatchMode):
    """Adds up the operations of everything that runs within.

    PyTorch's own FlopCounterMode hooks every module, which changes the order in which gradients are added and so their
    last bit: a run that was stopped would no longer go on exactly as it would have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := FORMULAS.get(func.overloadpacket)) is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=out)
        return out


def counted(call: Callable[[], T]) -> tuple[T, int]:
    """What a call returns, and its operations: those of matrix products, convolutions and attention.

    A multiplication and an addition count as two. Gradients' products count like any other; Fourier transforms and what
    is done element by element do not. Compiled functions run uncompiled here: what is counted are calls of PyTorch, and
    torch.compile, meeting a function in a mode like this one, would leave it uncompiled for good.
    """
    with torch.compiler.set_stance("force_eager"), Counter() as counter:
        result = call()
    return result, counter.operations


class StepCounter:
    """Operations of a run's steps: counted in the first step of every phase, the same for the others of it."""

    def __init__(self) -> None:
        self._phase: Hashable = None
        self._operations: int | None = None

    def step(self, phase: Hashable, train_step: Callable[[Tensor], T], image: Tensor) -> tuple[T, int]:
        """Run a step; returns its result and its operations in this process."""
        if self._operations is None or phase != self._phase:
            result, self._operations = counted(lambda: train_step(image))
            self._phase = phase
            return result, self._operations
        return train_step(image), self._operations
