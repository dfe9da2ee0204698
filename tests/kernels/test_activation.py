import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from fastvlm_mlx.kernels import activation


@pytest.mark.parametrize("gelu", [activation._gelu, activation._gelu_rational, activation.gelu])
def test_gelu_is_exact_everywhere(gelu: Callable[[mx.array], mx.array]) -> None:
    x = np.concatenate([np.linspace(-40, 40, 20001), np.linspace(-4, 4, 20001)]).astype(np.float32)
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(np.float64)]
    error = np.abs(np.array(gelu(mx.array(x)), np.float64) - expected)
    assert error.max() < 2e-6  # two steps of float32 at 40
    assert error[np.abs(x) < 4].max() < 8e-7  # the tanh form is off by 5e-4


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_gelu_keeps_half_types(dtype: mx.Dtype) -> None:
    x = mx.linspace(-6, 6, 101)
    found = activation.gelu(x.astype(dtype))
    assert found.dtype == dtype
    assert mx.abs(found.astype(mx.float32) - activation.gelu(x)).max() < 0.05
