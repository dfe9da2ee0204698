"""Activations, each one kernel on a GPU.

`mx.compile` is used on GPUs only: on the CPU it runs a C++ compiler for about a second per kernel,
which would land in the first answer.
"""

import math

import mlx.core as mx

_RSQRT2 = 1 / math.sqrt(2)

# erf(t) ≈ t·P(t²)/Q(t²) on |t| ≤ 3.9 to 1.5e-8, by weighted least squares (benchmarks/fit_erf.py), lowest
# power first; from there on erf is 1 to 3.5e-8.
_ERF_LIMIT = 3.9
_ERF_P = (1.12837903, 0.191939825, 0.0529667421, 0.00383681971, 0.000287455063, 2.05038452e-06)
_ERF_Q = (1.0, 0.50343402, 0.114757694, 0.0151090924, 0.00118171901, 3.82305981e-05)
_P = [0.5 * _RSQRT2 * c / 2**power for power, c in enumerate(_ERF_P)]  # in x = t√2, halved
_Q = [c / 2**power for power, c in enumerate(_ERF_Q)]


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x * _RSQRT2)) * 0.5


def _gelu_rational(x: mx.array) -> mx.array:
    """MLX's erf is not vectorised on the CPU; twenty-odd multiply-adds are, and take a fifth of its time."""
    t = mx.clip(x, -_ERF_LIMIT / _RSQRT2, _ERF_LIMIT / _RSQRT2)
    square = t * t
    return x * (0.5 + t * _horner(_P, square) / _horner(_Q, square))


def _horner(coefficients: list[float], x: mx.array) -> mx.array:
    y = coefficients[-1] * x + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        y = y * x + coefficient
    return y


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


_fused_gelu = mx.compile(_gelu, shapeless=True)
_fused_swiglu = mx.compile(_swiglu, shapeless=True)


def _on_gpu() -> bool:
    return mx.default_device() == mx.Device(mx.gpu)


def gelu(x: mx.array) -> mx.array:
    """By the error function, as the reference."""
    if _on_gpu():
        return _fused_gelu(x)
    return _gelu_rational(x) if x.dtype == mx.float32 else _gelu(x)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) · up"""
    return _fused_swiglu(gate, up) if _on_gpu() else _swiglu(gate, up)
