"""Operations whose best form differs by device."""

from collections.abc import Callable

import mlx.core as mx

from .activation import gelu, swiglu
from .depthwise import Convolution, stock, toeplitz

__all__ = ["Convolution", "by_rows", "depthwise", "gelu", "stock", "swiglu", "toeplitz"]

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
    """The best depthwise convolution for these weights on this device."""
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    return stock(weight, stride) if on_gpu or weight.dtype != mx.float32 else toeplitz(weight, stride)
