"""Operations whose best form differs by device."""

from collections.abc import Callable

import mlx.core as mx

from .activation import gelu, swiglu
from .attention import Attention
from .choice import chosen
from .depthwise import Convolution, Depthwise, stock, toeplitz

__all__ = ["Convolution", "attend", "by_rows", "depthwise", "gelu", "stock", "swiglu", "toeplitz"]

_RUN_FLOATS = 2**20


def by_rows(layer: Callable[[mx.array], mx.array], x: mx.array, width: int) -> mx.array:
    """`layer` of every row of x (…, C), which is at most `width` wide on the way.

    On the CPU in runs of rows small enough to stay in cache.
    """
    rows = max(1, _RUN_FLOATS // width)
    count = -(-x.size // (x.shape[-1] * rows))
    if count == 1 or mx.default_device() == mx.Device(mx.gpu):
        return layer(x)
    flat = x.reshape(-1, x.shape[-1])
    runs = [layer(flat[first : first + rows]) for first in range(0, flat.shape[0], rows)]
    return mx.concatenate(runs).reshape(*x.shape[:-1], -1)


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
