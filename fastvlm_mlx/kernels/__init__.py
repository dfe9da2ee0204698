"""Operations whose best form differs by device."""

from collections.abc import Callable

import mlx.core as mx

from .activation import gelu, shifted, swiglu
from .attention import Attention
from .choice import chosen
from .depthwise import Convolution, Depthwise, stock, toeplitz

__all__ = [
    "Convolution",
    "attend",
    "by_rows",
    "depthwise",
    "gelu",
    "shifted",
    "stock",
    "swiglu",
    "toeplitz",
]

_RUN_FLOATS = 2**20


def by_rows(layer: Callable[..., mx.array], width: int, *inputs: mx.array) -> mx.array:
    """`layer` of every row of the inputs (…, C), which are at most `width` wide on the way.

    On the CPU in runs of rows small enough to stay in cache.
    """
    outer = inputs[0].shape[:-1]
    flat = [x.flatten(0, -2) for x in inputs]
    count, rows = flat[0].shape[0], max(1, _RUN_FLOATS // width)
    if count <= rows or mx.default_device() == mx.Device(mx.gpu):
        return layer(*flat).reshape(*outer, -1)
    runs = [layer(*(x[first : first + rows] for x in flat)) for first in range(0, count, rows)]
    return mx.concatenate(runs).reshape(*outer, -1)


def depthwise(weight: mx.array, stride: int) -> Convolution:
    """The best depthwise convolution for these weights on this device; which one it is is decided once."""
    prepared: Convolution | None = None

    def convolve(x: mx.array) -> mx.array:
        nonlocal prepared
        if prepared is None:
            rows, columns, channels = x.shape[1:]
            widening = weight.shape[0] // channels
            problem = Depthwise(channels, weight.shape[1], stride, widening, rows, columns)
            candidate = chosen(problem, weight.dtype)
            prepared = candidate.make(weight, stride)
        return prepared(x)

    return convolve


def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """The tower's attention: q, k, v (B, heads, N, head_dim), scaled beforehand."""
    _, heads, tokens, head_dim = q.shape
    y: mx.array = chosen(Attention(heads, head_dim, tokens), q.dtype).make(q, k, v)
    return y
