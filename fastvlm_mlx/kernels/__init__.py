"""Operations whose best form differs by device."""

import mlx.core as mx

from .activation import gelu, swiglu
from .depthwise import Convolution, stock, toeplitz

__all__ = ["Convolution", "depthwise", "gelu", "stock", "swiglu", "toeplitz"]


def depthwise(weight: mx.array, stride: int) -> Convolution:
    """The best depthwise convolution for these weights on this device."""
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    return stock(weight, stride) if on_gpu or weight.dtype != mx.float32 else toeplitz(weight, stride)
