"""Which search finds DiffC's messages: compiled for the CPU, or Triton's on a GPU. The message is the same."""

import importlib.util
import warnings
from functools import cache, partial
from typing import TYPE_CHECKING

import torch

from codling.rcc.trellis import Search, search

if TYPE_CHECKING:
    from codling.codecs.triton_search import TritonSearch


def search_on(device: torch.device) -> Search:
    """Triton's search on a CUDA device where Triton is installed and works, else that of `rcc.trellis`.

    On a CPU it takes as many threads as torch does now: one setting for the network and the search beside it, so that
    workers which keep to a thread do so in both.
    """
    found = gpu_search(device) if device.type == "cuda" else None
    return partial(search, threads=torch.get_num_threads()) if found is None else found.message


@cache
def gpu_search(device: torch.device) -> "TritonSearch | None":
    """Triton's search on a device, checked against the one on a CPU; None if Triton is not installed.

    None too, with a RuntimeWarning, if it fails there: the caller has another, and an unchecked one is worth nothing.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    from codling.codecs.triton_search import TritonSearch

    try:
        found = TritonSearch(device)
        found.check()
    # Triton needs a driver and a compiler of its own and of the system, and each has its own ways of failing.
    except Exception as error:
        warnings.warn(
            f"Triton does not work on {device}, so reverse channel coding searches on the CPU, slower and with the "
            f"same bytes: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return found
