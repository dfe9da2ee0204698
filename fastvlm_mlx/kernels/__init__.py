"""Operations whose best form differs by device."""

from collections.abc import Callable

import mlx.core as mx

from .. import blas
from . import lanes
from .activation import gelu, shifted, swiglu
from .attention import AttentionProblem
from .choice import choose
from .depthwise import depthwise, stock, toeplitz
from .lanes import run_parallel

__all__ = [
    "attend",
    "by_rows",
    "depthwise",
    "gelu",
    "product",
    "run_parallel",
    "shifted",
    "stock",
    "swiglu",
    "toeplitz",
]

_RUN_FLOATS = 2**20
_PIECE = 2400  # outputs of a matrix
_PRODUCTS = 64  # as many take as long as an activation of one value


def by_rows(layer: Callable[..., mx.array], width: int, *inputs: mx.array) -> mx.array:
    """`layer` of every row of the inputs (…, C), which are at most `width` wide on the way.

    On the CPU in runs of rows small enough to stay in cache.
    """
    outer = inputs[0].shape[:-1]
    flat = [x.flatten(0, -2) for x in inputs]
    count, most = flat[0].shape[0], max(1, _RUN_FLOATS // width)
    at_once = lanes.part_count(count * width * flat[0].shape[-1] // _PRODUCTS)
    runs = -(-count // (most * at_once)) * at_once
    if runs == 1 or mx.default_device() == mx.Device(mx.gpu):
        return layer(*flat).reshape(*outer, -1)
    y = lanes.map_slices(lambda few: layer(*(x[few] for x in flat)), count, -(-count // runs))
    return y.reshape(*outer, -1)


def product(rows: mx.array, matrix: mx.array) -> mx.array:
    """rows · matrixᵀ. OpenBLAS reads a large matrix faster in pieces where there is but one row."""
    outputs = len(matrix)
    in_pieces = outputs > _PIECE and rows.size == rows.shape[-1] and blas.is_openblas()
    if not in_pieces or mx.default_device() == mx.Device(mx.gpu):
        return rows @ matrix.T
    pieces = mx.split(matrix, list(range(_PIECE, outputs, _PIECE)))
    return mx.concatenate([rows @ piece.T for piece in pieces], axis=-1)


def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """The tower's attention: q, k, v (B, heads, N, head_dim), scaled beforehand."""
    _, heads, tokens, head_dim = q.shape
    return choose(AttentionProblem(heads, head_dim, tokens), q.dtype).make(q, k, v)
