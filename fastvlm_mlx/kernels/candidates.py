"""What a table of candidates is made of: ways to do one operation, the stock one first."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

METAL, CUDA, CPU = "metal", "cuda", "cpu"
GPUS = (METAL, CUDA)
FLOATS = (mx.float16, mx.bfloat16, mx.float32)


Outputs = mx.array | tuple[mx.array, ...]
Step = Callable[[], Outputs]
_Out = TypeVar("_Out", mx.array, tuple[mx.array, mx.array])
_Expected = npt.NDArray[np.float64] | tuple[npt.NDArray[np.float64], ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    name: str
    make: Callable[..., Any]  # what it is called with is its operation's affair
    devices: tuple[str, ...] = (*GPUS, CPU)
    dtypes: tuple[mx.Dtype, ...] = FLOATS
    source: str = ""  # of a kernel that is compiled on the spot

    @property
    def mark(self) -> str:
        """What it is remembered by; a changed kernel is another candidate."""
        return f"{self.name} {zlib.crc32(self.source.encode()):08x}" if self.source else self.name


class Problem(Protocol):
    """One layer's work, which the candidates of a table compete for."""

    @property
    def table(self) -> tuple[Candidate, ...]: ...

    @property
    def key(self) -> str:
        """What the choice is remembered by: the layer's own sizes, not the picture's."""
        ...

    @property
    def shape(self) -> str: ...

    @property
    def on_cpu(self) -> str:
        """The candidate that a CPU takes, if it can, while nothing was measured."""
        ...

    def small(self) -> Problem:
        """The same, small enough for the plain definition."""
        ...

    def inputs(self, dtype: mx.Dtype) -> tuple[mx.array, ...]: ...

    def expected(self, *inputs: npt.NDArray[np.float64]) -> _Expected:
        """By the plain definition."""
        ...

    def step(self, candidate: Candidate, inputs: tuple[mx.array, ...]) -> Step: ...


def device() -> str:
    if mx.default_device() != mx.Device(mx.gpu):
        return CPU
    return METAL if mx.metal.is_available() else CUDA


def able(problem: Problem, where: str, dtype: mx.Dtype) -> tuple[Candidate, ...]:
    """Those that may run there, the stock one first."""
    return tuple(c for c in problem.table if where in c.devices and dtype in c.dtypes)


def noise(seed: int, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def with_gradient_of(plain: Callable[..., _Out], quick: Callable[..., _Out]) -> Callable[..., _Out]:
    """`quick` forward, `plain` backward: for what autodiff cannot follow, or follows slowly."""
    function = mx.custom_function(quick)

    @function.vjp
    def _(primals: tuple[mx.array, ...], cotangents: Outputs, _: Outputs) -> tuple[mx.array, ...]:
        given = list(cotangents) if isinstance(cotangents, tuple | list) else [cotangents]
        return tuple(mx.vjp(plain, list(primals), given)[1])

    return function  # type: ignore[return-value]
