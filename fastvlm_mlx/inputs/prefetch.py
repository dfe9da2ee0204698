"""Computes results in threads before they are needed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = max(2, min(8, os.cpu_count() or 1))  # decode pictures while the model computes

A = TypeVar("A")
B = TypeVar("B")


def map_ahead(function: Callable[[A], B], items: Iterable[A], count: int) -> Iterator[B]:
    """Like `map`, but computes up to `count` results ahead."""
    coming: deque[Future[B]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            coming.append(pool.submit(function, item))
            if len(coming) > count:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
