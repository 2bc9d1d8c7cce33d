"""Work split into equal parts, one a Python thread: for compiled loops that release the interpreter's lock."""

from collections.abc import Callable
from concurrent.futures import Executor


def in_parts(pool: Executor, parts: int, first: int, last: int, work: Callable[[int, int], None]) -> None:
    """Run work(begin, end) on `parts` ranges that make up range(first, last), and wait; raises what a part raised."""
    bounds = [first + (last - first) * part // parts for part in range(parts + 1)]
    for _ in pool.map(work, bounds, bounds[1:]):
        pass
