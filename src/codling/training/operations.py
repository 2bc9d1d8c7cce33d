"""What a step computes, counted in floating-point operations."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

T = TypeVar("T")


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


# Attention as CPUs compute it, which PyTorch's table of formulas lacks.
ON_CPU: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def counted(call: Callable[[], T]) -> tuple[T, int]:
    """What a call returns, and its operations: those of matrix products, convolutions and attention.

    A multiplication and an addition count as two. The gradient's and the optimisers' products are counted like any
    other; Fourier transforms and element by element work are not.
    """
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        result = call()
    return result, int(counter.get_total_flops())


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
