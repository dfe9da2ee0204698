"""Several cores of a CPU at once: MLX computes the operations of a stream one after another in one thread.

Only BLAS divides a product between threads, so activations, copies and attention would leave all cores but
one idle. Within `begun`, what falls into independent parts is put on streams of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from threading import Lock

import mlx.core as mx

from .. import blas

_MOST = 8  # cores: beyond, parts get small and memory is what they wait for
_WORTH_IT = 80_000  # values, below which setting another core going takes longer than it saves
_Lanes = tuple[mx.Stream, ...]
_using = Lock()  # the streams are for one thread at a time
_open: ContextVar[_Lanes] = ContextVar("lanes", default=())


def run_parallel(layer: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """`layer` of x: on a GPU under way; on a CPU computed, between cores by its first axis, or where that is
    too short operation by operation. Products take a thread each meanwhile."""
    cores = min(blas.threads(), _MOST) if mx.default_device() == mx.Device(mx.cpu) else 1
    if cores < 2:
        y = layer(x)
        mx.async_eval(y)
        return y
    with _using, _opened(_streams(cores)), blas.single():
        each = len(x) if len(x) < cores else -(-len(x) // cores)
        y = map_slices(lambda few: layer(x[few]), len(x), each)
        mx.eval(y)
    return y


def part_count(values: int) -> int:
    """Into how many parts to divide the work of so many values, for all to be computed at once."""
    return max(1, len(_open.get())) if values >= _WORTH_IT else 1


def map_slices(part: Callable[[slice], mx.array], length: int, each: int, axis: int = 0) -> mx.array:
    """What `part` gives of every `each` of `length`, in order along `axis`."""
    parts = run_all([partial(part, few) for few in slices(length, each)])
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis)


def slices(length: int, each: int) -> list[slice]:
    return [slice(first, first + each) for first in range(0, length, each)]


def run_all(parts: Sequence[Callable[[], mx.array]]) -> list[mx.array]:
    """What all give, between the cores. A part of several is not divided again."""
    lanes = _open.get()
    if len(parts) == 1 or not lanes:
        return [part() for part in parts]
    arrays: list[mx.array] = []
    with _opened(()):
        for number, part in enumerate(parts):
            with mx.stream(lanes[number % len(lanes)]):
                arrays.append(part())
            if len(parts) > len(lanes) and (number + 1) % len(lanes) == 0:
                # One for each core, operation by operation in turn, while what it works on is in its cache.
                mx.async_eval(arrays[-len(lanes) :])
    return arrays


@contextmanager
def _opened(lanes: _Lanes) -> Iterator[None]:
    before = _open.set(lanes)
    try:
        yield
    finally:
        _open.reset(before)


@cache
def _streams(cores: int) -> _Lanes:
    return tuple(mx.new_thread_unsafe_stream(mx.Device(mx.cpu)) for _ in range(cores))
