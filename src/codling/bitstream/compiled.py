"""Compiled functions that are kept between processes where there is a place to keep them."""

from collections.abc import Callable
from typing import TypeVar

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """`numba.njit` without the interpreter's lock, cached beside the source or in the user's cache directory.

    Where neither can be written, as for a system's package and a user without a home, each process compiles anew.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)  # type: ignore[return-value]
    except RuntimeError:
        return numba.njit(nogil=True)(function)  # type: ignore[return-value]
