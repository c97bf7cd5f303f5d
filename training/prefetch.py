"""Computes the results of a function for successive numbers ahead of time, in other processes."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

Result = TypeVar("Result")


def prefetched(make: Callable[[int], Result], numbers: Iterable[int], workers: int) -> Iterator[Result]:
    """Yield `make(number)` for each number, in order; `make` must be picklable.

    `workers` processes stay twice their number of results ahead; 0 makes each result when it is asked for. An
    exception of `make` is raised where its result would have been yielded.
    """
    if workers == 0:
        for number in numbers:
            yield make(number)
        return
    remaining = iter(numbers)
    # Forking a process that has run torch can hang in its thread pools.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        coming: deque[Future[Result]] = deque(pool.submit(make, n) for n in islice(remaining, 2 * workers))
        try:
            while coming:
                yield coming.popleft().result()
                coming.extend(pool.submit(make, number) for number in islice(remaining, 1))
        finally:
            pool.shutdown(cancel_futures=True)
