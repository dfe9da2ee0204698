"""Activations, and sums beside them, each one kernel on a GPU.

`mx.compile` is used on GPUs only: on the CPU it runs a C++ compiler for about a second per kernel,
which would land in the first answer. There, MLX's erf and exp go one value at a time, and twenty-odd
multiply-adds of whole arrays are quicker (`benchmarks/against_mlx_vlm.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .candidates import CPU, GPUS, Candidate, Step, noise
from .choice import choose


@dataclass(frozen=True, slots=True)
class Odd:
    """An odd function that levels off: x·P(x²)/Q(x²) up to a limit, coefficients lowest power first.

    Fitted by benchmarks/fit_activations.py.
    """

    limit: float
    p: tuple[float, ...]
    q: tuple[float, ...]

    def half_of(self, s: float) -> Odd:
        """x -> f(s·x)/2, the scales worked into the coefficients"""
        p, q = ([c * s ** (2 * power) for power, c in enumerate(part)] for part in (self.p, self.q))
        return Odd(self.limit / s, tuple(0.5 * s * c for c in p), tuple(q))

    def __call__(self, x: mx.array) -> mx.array:
        t = mx.clip(x, -self.limit, self.limit)
        square = t * t
        return t * horner(self.p, square) / horner(self.q, square)


def horner(coefficients: tuple[float, ...], x: mx.array) -> mx.array:
    y = coefficients[-1] * x + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        y = y * x + coefficient
    return y


_HALF_ERF = Odd(  # to 1.5e-8, and 3.5e-8 beyond the limit
    3.9,
    (1.12837903, 0.191940583, 0.0529668541, 0.00383685585, 0.000287456477, 2.05038624e-06),
    (1.0, 0.503434691, 0.114758018, 0.0151091637, 0.00118172894, 3.82306906e-05),
).half_of(math.sqrt(0.5))
_HALF_TANH = Odd(  # to 1.8e-8, and 3.0e-8 beyond the limit
    9.0,
    (0.999999906, 0.133731956, 0.00348657931, 2.04717872e-05, 1.31841639e-08),
    (1.0, 0.467064924, 0.0258419694, 0.000327138111, 7.70263885e-07),
).half_of(0.5)
_TAIL = (  # of the bell beyond a, as a power of this polynomial; a times it to 2.1e-7
    *(1.04427484, 0.0520639779, 0.0221137169, 0.00337051047),
    *(7.53223235e-05, 3.96491954e-05, 6.9880152e-06),
)
_GELU_SLOPE = Odd(  # less its 1/2; to 7e-5, which a gradient does not notice
    4.5,
    (0.798211113, -0.0269910302, 0.0142146424, 0.000128301657),
    (1.0, 0.30162169, 0.0402757983, 0.00489999164),
)


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x * math.sqrt(0.5))) * 0.5


def _gelu_of_sum(x: mx.array, bias: mx.array) -> mx.array:
    return _gelu(x + bias)


def _shifted(x: mx.array, first: mx.array, second: mx.array) -> tuple[mx.array, mx.array]:
    x = x + first
    return x, x + second


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


_fused_gelu = mx.compile(_gelu, shapeless=True)
_fused_gelu_of_sum = mx.compile(_gelu_of_sum, shapeless=True)
_fused_shifted = mx.compile(_shifted, shapeless=True)
_fused_swiglu = mx.compile(_swiglu, shapeless=True)


_FEW = 32_768  # elements below which one slow operation costs less than twenty quick ones
_MANY = 2**20  # elements that tell how long one takes


def _on_gpu() -> bool:
    return mx.default_device() == mx.Device(mx.gpu)


def shifted(x: mx.array, first: mx.array, second: mx.array) -> tuple[mx.array, mx.array]:
    """x + first, and second added to that"""
    return _fused_shifted(x, first, second) if _on_gpu() else _shifted(x, first, second)


def gelu(x: mx.array, bias: mx.array | None = None) -> mx.array:
    """Of x + bias, by the error function, as the reference."""
    if bias is not None:
        if _on_gpu():
            return _fused_gelu_of_sum(x, bias)
        x = x + bias
    if x.size <= _FEW and not _on_gpu():
        return _gelu(x)
    y: mx.array = choose(GeluProblem(min(x.size, _MANY)), x.dtype).make(x)
    return y


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) · up"""
    if _on_gpu():
        return _fused_swiglu(gate, up)
    worth_it = gate.dtype == mx.float32 and gate.size > _FEW
    return _quick_swiglu(gate, up) if worth_it else _swiglu(gate, up)  # type: ignore[return-value]


# Autodiff through the rational functions would double their many operations. Training alone takes gradients,
# so these may be compiled: it waits a second for a compiler gladly.
@mx.custom_function
def _quick_gelu(x: mx.array) -> mx.array:
    return x * (0.5 + _HALF_ERF(x))


@mx.custom_function
def _power_gelu(x: mx.array) -> mx.array:
    """max(x, 0) less |x| times the bell's tail beyond |x|, 1/P(|x|)^16, which vanishes far out by itself."""
    size = mx.abs(x)
    power = horner(_TAIL, size)
    for _ in range(4):
        power = mx.square(power)
    return mx.maximum(x, 0.0) - size / power


@mx.custom_function
def _quick_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * (0.5 + _HALF_TANH(gate)) * up  # the logistic function is half of 1 + tanh(x/2)


@mx.compile
def _gelu_gradient(x: mx.array, cotangent: mx.array) -> mx.array:
    return cotangent * (0.5 + _GELU_SLOPE(x))


@mx.compile
def _swiglu_gradients(gate: mx.array, up: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    logistic = 0.5 + _HALF_TANH(gate)
    silu = gate * logistic
    return cotangent * up * (logistic + silu * (1 - logistic)), cotangent * silu


def _gelu_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    return _gelu_gradient(x, cotangent)


_quick_gelu.vjp(_gelu_vjp)
_power_gelu.vjp(_gelu_vjp)


@_quick_swiglu.vjp
def _(primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    return _swiglu_gradients(*primals, cotangent)


TABLE = (
    Candidate("compiled", _fused_gelu, GPUS),
    Candidate("erf", _gelu, (CPU,)),
    Candidate("rational", _quick_gelu, (CPU,), (mx.float32,)),
    Candidate("powers", _power_gelu, (CPU,), (mx.float32,)),
)


@dataclass(frozen=True, slots=True)
class GeluProblem:
    values: int

    @property
    def table(self) -> tuple[Candidate, ...]:
        return TABLE

    @property
    def key(self) -> str:
        return "GELU"

    @property
    def shape(self) -> str:
        return f"{self.values} values"

    @property
    def on_cpu(self) -> str:
        return "rational"  # nearer to the reference through a whole tower than powers, which are quicker

    def small(self) -> GeluProblem:
        return GeluProblem(20_000)

    def inputs(self, dtype: mx.Dtype) -> tuple[mx.array, ...]:
        return (3 * noise(0, (self.values,), dtype),)

    def expected(self, *inputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([x * (1 + math.erf(x * math.sqrt(0.5))) / 2 for x in inputs[0]])

    def step(self, candidate: Candidate, inputs: tuple[mx.array, ...]) -> Step:
        return lambda: candidate.make(*inputs)
