"""Work done in threads before it is asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = max(2, min(8, os.cpu_count() or 1))  # that decode pictures while the model is at work

A = TypeVar("A")
B = TypeVar("B")


def mapped(function: Callable[[A], B], items: Iterable[A], count: int) -> Iterator[B]:
    """`map`, with `count` results on their way before they are asked for."""
    coming: deque[Future[B]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            coming.append(pool.submit(function, item))
            if len(coming) > count:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
