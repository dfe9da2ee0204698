"""Several cores at once: the same answers, in order, and BLAS as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from fastvlm_mlx import blas, kernels
from fastvlm_mlx.kernels import lanes

CORES = 3


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("of the CPU")
    monkeypatch.setattr(blas, "threads", lambda: CORES)
    monkeypatch.setattr(blas, "_divide", lambda number: None)  # or later tests would round otherwise
    monkeypatch.setattr(lanes, "_WORTH_IT", 1)


def within(build: Callable[[], mx.array]) -> mx.array:
    """Operation by operation: of a batch of one"""
    return kernels.run_parallel(lambda _: build(), mx.zeros((1,)))


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("length", range(1, 9))
def test_a_batch_is_divided_and_put_together_in_order(length: int) -> None:
    seen: list[int] = []

    def layer(x: mx.array) -> mx.array:
        seen.append(len(x))
        return 2 * x

    x = mx.arange(length)
    assert mx.array_equal(kernels.run_parallel(layer, x), 2 * x)
    assert sum(seen) == length
    assert len(seen) == (1 if length < CORES else -(-length // -(-length // CORES)))


@pytest.mark.usefixtures("cores")
def test_parts_have_streams_of_their_own_and_are_not_divided_again() -> None:
    streams, counts = [], []

    def part(few: slice) -> mx.array:
        streams.append(mx.default_stream(mx.default_device()))
        counts.append(lanes.part_count(1000))
        return mx.arange(few.start, few.stop)

    def build() -> mx.array:
        assert lanes.part_count(1000) == CORES
        return lanes.map_slices(part, 2 * CORES, 1)

    before = mx.default_stream(mx.default_device())
    assert mx.array_equal(within(build), mx.arange(2 * CORES))
    assert streams[:CORES] == streams[CORES:]
    assert len({str(stream) for stream in (*streams, before)}) == CORES + 1
    assert counts == [1] * 2 * CORES
    assert mx.default_stream(mx.default_device()) == before


@pytest.mark.usefixtures("cores")
def test_several_threads_share_the_streams() -> None:
    x = mx.random.normal((4, 50), key=mx.random.key(0))
    mx.eval(x)
    expected = mx.tanh(x @ x.T).tolist()

    def encode(_: int) -> Any:
        return kernels.run_parallel(lambda row: mx.tanh(row @ x.T), x).tolist()

    with ThreadPoolExecutor(4) as pool:
        assert all(np.allclose(found, expected, atol=1e-5) for found in pool.map(encode, range(40)))


def test_outside_nothing_is_divided() -> None:
    streams = []

    def part(few: slice) -> mx.array:
        streams.append(mx.default_stream(mx.default_device()))
        return mx.arange(few.start, few.stop)

    assert mx.array_equal(lanes.map_slices(part, 2, 1), mx.arange(2))
    assert lanes.part_count(2**40) == 1
    assert streams == [mx.default_stream(mx.default_device())] * 2


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda x: kernels.by_rows(lambda row: row @ mx.ones((40, 8)), 40, x), id="rows"),
        pytest.param(lambda x: kernels.depthwise(mx.ones((40, 3, 3, 1)), 1)(x), id="depthwise"),
        pytest.param(lambda x: kernels.depthwise(mx.ones((80, 7, 7, 1)), 2)(x), id="widening"),
        pytest.param(lambda x: kernels.attend(*(x.reshape(2, 5, -1, 8) * s for s in (1, 2, 3))), id="heads"),
    ],
)
def test_divided_operations_give_what_whole_ones_do(
    build: Callable[[mx.array], mx.array],
    relative_error: Callable[[Any, Any], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = mx.random.normal((2, 9, 14, 40), key=mx.random.key(0))
    whole = build(x)
    places: set[str] = set()
    stream = mx.stream

    def noted(lane: mx.Stream) -> Any:
        places.add(str(lane))
        return stream(lane)

    monkeypatch.setattr(mx, "stream", noted)
    divided = within(lambda: build(x))
    assert len(places) == CORES
    assert divided.shape == whole.shape
    assert relative_error(divided, whole) <= 1e-6


class Library:
    """As much of OpenBLAS as is used"""

    def __init__(self, threads: int):
        self.threads = threads

    def openblas_get_num_threads(self) -> int:
        return self.threads

    def openblas_set_num_threads(self, number: int) -> None:
        self.threads = number


def test_blas_has_its_threads_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(4)
    monkeypatch.setattr(blas, "_loaded", [library])
    seen = []

    def fail() -> None:
        seen.append(blas.threads())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), blas.single():
        fail()
    assert seen == [1]
    assert blas.threads() == library.threads == 4


@pytest.mark.parametrize("loaded", [[], [object()]], ids=["none", "one that does not tell"])
def test_a_blas_that_does_not_tell_has_one_thread(
    loaded: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "_loaded", loaded)
    with blas.single():
        assert blas.threads() == 1
