"""Compiled loops where nothing can be written beside the source or in the user's cache directory."""

import numba
import pytest
from numba.core.caching import CompileResultCacheImpl

from codling.bitstream.compiled import compiled


def test_functions_compile_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])

    def twice(x: int) -> int:
        return 2 * x

    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(twice)
    assert compiled(twice)(21) == 42
