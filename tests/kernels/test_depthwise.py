"""Every candidate equals the plain definition."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from fastvlm_mlx.kernels import depthwise, stock
from fastvlm_mlx.kernels.candidates import CPU, Candidate, device
from fastvlm_mlx.kernels.depthwise import TABLE, DepthwiseProblem

Array = np.ndarray
SHAPES = [(1, 1, 1, 4), (2, 3, 5, 4), (1, 8, 8, 16), (3, 9, 13, 2), (1, 4, 17, 3)]


def plain(x: Array, weight: Array, stride: int) -> Array:
    """Pixel by pixel in float64; m outputs per channel, first outputs before second ones."""
    size, channels = weight.shape[1], x.shape[-1]
    margin = size // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    rows, columns = (-(-side // stride) for side in x.shape[1:3])
    out = np.zeros((x.shape[0], rows, columns, weight.shape[0]))
    for row in range(rows):
        for column in range(columns):
            window = padded[:, row * stride : row * stride + size, column * stride : column * stride + size]
            for first in range(0, weight.shape[0], channels):
                kernel = weight[first : first + channels, :, :, 0].transpose(1, 2, 0)
                out[:, row, column, first : first + channels] = (window * kernel).sum((1, 2))
    return out


@pytest.mark.parametrize(
    "candidate", [c for c in TABLE if CPU in c.devices], ids=lambda candidate: candidate.name
)
@pytest.mark.parametrize(
    ("size", "stride", "widening"), [(3, 1, 1), (3, 2, 1), (7, 1, 1), (7, 2, 2), (3, 1, 3)]
)
def test_depthwise_equals_the_plain_definition(
    candidate: Candidate,
    size: int,
    stride: int,
    widening: int,
    relative_error: Callable[[Array, Array], float],
) -> None:
    if device() not in candidate.devices:
        pytest.skip("for the CPU")
    for shape in SHAPES:
        random = np.random.default_rng(0)
        x = random.standard_normal(shape, dtype=np.float32)
        weight = random.standard_normal((widening * shape[-1], size, size, 1), dtype=np.float32)
        convolve = candidate.make(mx.array(weight), stride)
        expected = plain(x, weight, stride)
        assert relative_error(convolve(mx.array(x)), expected) < 2e-6, shape
        problem = DepthwiseProblem(shape[-1], size, stride, widening, *shape[1:3])
        exact = problem.expected(x.astype(float), weight.astype(float))
        assert relative_error(exact, expected) < 1e-12, shape


def test_one_convolution_serves_many_sizes() -> None:
    weight = mx.random.normal((8, 7, 7, 1), key=mx.random.key(0))
    convolve, reference = depthwise(weight, 1), stock(weight, 1)
    for side in (1, 2, 5, 16, 31):
        x = mx.random.normal((1, side, side + 1, 8), key=mx.random.key(side))
        assert mx.allclose(convolve(x), reference(x), rtol=1e-4, atol=1e-4)
