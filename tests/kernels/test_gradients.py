"""Gradients written by hand equal those of the plain definitions."""

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import pytest

from fastvlm_mlx.kernels import activation, gelu, stock, swiglu, toeplitz
from fastvlm_mlx.kernels.depthwise import bands

MANY = (48, 1024)  # enough values that the quick forms are taken


def close(found: mx.array, wanted: mx.array, share: float) -> bool:
    return (mx.abs(found - wanted).max() / mx.abs(wanted).max()).item() < share


@pytest.mark.parametrize("candidate", [toeplitz, partial(bands, wide=4)])
@pytest.mark.parametrize(
    ("size", "stride", "widening"), [(3, 1, 1), (3, 2, 1), (7, 1, 1), (7, 2, 4), (3, 1, 2)]
)
def test_depthwise_gradients_equal_mlx_own(
    size: int,
    stride: int,
    widening: int,
    candidate: Callable[[mx.array, int], Callable[[mx.array], mx.array]],
) -> None:
    for shape in [(2, 8, 8, 16), (1, 9, 13, 3), (2, 3, 5, 4), (2, 16, 16, 4)]:
        x = mx.random.normal(shape, key=mx.random.key(0))
        weight = mx.random.normal((widening * shape[-1], size, size, 1), key=mx.random.key(1))
        cotangent = mx.random.normal(stock(weight, stride)(x).shape, key=mx.random.key(2))
        found, wanted = (
            mx.vjp(lambda x, weight, make=make: make(weight, stride)(x), [x, weight], [cotangent])[1]
            for make in (candidate, stock)
        )
        for mine, plain in zip(found, wanted, strict=True):
            assert close(mine, plain, 1e-5), shape


@pytest.mark.parametrize("gelu", [gelu, activation._power_gelu])
def test_gelu_gradient_equals_that_of_the_error_function(gelu: Callable[[mx.array], mx.array]) -> None:
    x = 3 * mx.random.normal(MANY, key=mx.random.key(0))
    found = mx.grad(lambda x: gelu(x).sum())(x)
    wanted = mx.grad(lambda x: (x * (1 + mx.erf(x * 0.5**0.5)) / 2).sum())(x)
    assert close(found, wanted, 1e-4)


def test_swiglu_gradients_equal_those_of_the_logistic_function() -> None:
    gate, up = (3 * mx.random.normal(MANY, key=mx.random.key(n)) for n in (0, 1))
    found = mx.grad(lambda gate, up: (swiglu(gate, up) ** 2).sum(), argnums=(0, 1))(gate, up)
    wanted = mx.grad(lambda gate, up: ((gate * mx.sigmoid(gate) * up) ** 2).sum(), argnums=(0, 1))(gate, up)
    for mine, plain in zip(found, wanted, strict=True):
        assert close(mine, plain, 1e-5)
