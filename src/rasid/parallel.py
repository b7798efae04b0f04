"""Work on several items at once, results in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    threads: int,
    ahead: int | None = None,
    pool: Executor | None = None,
) -> Iterator[R]:
    """`map(function, items)` on several threads: the same results in the same order.

    Items are taken from the iterable in the caller's thread, a few ahead of the results and never more, so that memory
    does not grow with their number. An exception comes out where its result would have.

    Args:
        function: Must be safe to call from several threads, and leave the interpreter lock most of the time.
        items: What to work on.
        threads: How many at once; with 1, everything happens in the caller's thread.
        ahead: Most items taken before the first of their results is; twice the threads by default.
        pool: Works on the items in place of threads; left open.
    """
    if threads == 1 and pool is None:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) if pool is None else nullcontext(pool) as executor:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(executor.submit(function, item))
                if len(pending) > (ahead or 2 * threads):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
