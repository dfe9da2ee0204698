import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from fastvlm_mlx import kernels
from fastvlm_mlx.kernels import activation


@pytest.mark.parametrize("gelu", [activation._gelu, activation.gelu, activation._power_gelu])
def test_gelu_is_exact_everywhere(gelu: Callable[[mx.array], mx.array]) -> None:
    x = np.concatenate([np.linspace(-40, 40, 20001), np.linspace(-4, 4, 20001)]).astype(np.float32)
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(np.float64)]
    error = np.abs(np.array(gelu(mx.array(x)), np.float64) - expected)
    assert error.max() < 4e-6  # a step of float32 at 40
    assert error[np.abs(x) < 4].max() < 8e-7  # the tanh form is off by 5e-4


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_gelu_keeps_half_types(dtype: mx.Dtype) -> None:
    x = mx.linspace(-6, 6, 101)
    found = activation.gelu(x.astype(dtype))
    assert found.dtype == dtype
    assert mx.abs(found.astype(mx.float32) - activation.gelu(x)).max() < 0.05


@pytest.mark.parametrize("swiglu", [activation._swiglu, activation.swiglu])
def test_swiglu_is_exact_everywhere(swiglu: Callable[[mx.array, mx.array], mx.array]) -> None:
    x = np.concatenate([np.linspace(-60, 60, 20001), np.linspace(-4, 4, 20001)]).astype(np.float32)
    expected = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64))) * 2
    error = np.abs(np.array(swiglu(mx.array(x), mx.full(x.shape, 2.0)), np.float64) - expected)
    assert error.max() < 8e-6  # a step of float32 at 120
    assert error[np.abs(x) < 4].max() < 2e-6


def test_running_by_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_RUN_FLOATS", 100)
    shapes = (2, 3, 5, 8), (16, 8), (2, 3, 5, 16)
    x, weight, sums = (mx.random.normal(shape, key=mx.random.key(0)) for shape in shapes)
    found = kernels.by_rows(lambda sums, rows: sums + rows @ weight.T, 16, sums, x)
    assert found.shape == (2, 3, 5, 16)
    assert mx.allclose(found, sums + x @ weight.T, rtol=1e-5, atol=1e-6)


def test_what_a_gpu_compiles_is_the_same_for_any_shape() -> None:
    first, second = mx.random.normal((2, 8), key=mx.random.key(1))
    for shape in ((1, 4, 4, 8), (2, 6, 3, 8)):
        x = mx.random.normal(shape, key=mx.random.key(2))
        summed = activation._fused_gelu_of_sum(x, first)
        assert mx.allclose(summed, activation.gelu(x, first), rtol=1e-5, atol=1e-6)
        assert mx.allclose(summed, activation.gelu(x + first), rtol=1e-5, atol=1e-6)
        one, both = activation._fused_shifted(x, first, second)
        assert mx.allclose(one, x + first)
        assert mx.allclose(both, x + first + second)
