"""Products with a model's matrices: dense or packed, whole, adapted or divided."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import kernels


def product(matrix: Any, rows: mx.array) -> mx.array:
    """rows · matrixᵀ, of a matrix without bias; an embedding's as a head's"""
    if type(matrix) in (nn.Linear, nn.Embedding):
        return kernels.product(rows, matrix.weight)
    y: mx.array = matrix.as_linear(rows) if hasattr(matrix, "as_linear") else matrix(rows)
    return y


def added(sums: mx.array, matrix: Any, rows: mx.array) -> mx.array:
    """sums + rows · matrixᵀ, without the matrix's bias: whoever has one puts it into the sums. One operation,
    where the matrix is dense and whole."""
    if type(matrix) is nn.Linear:
        return mx.addmm(sums, rows, matrix.weight.T)
    if isinstance(matrix, nn.QuantizedLinear):
        how = {"group_size": matrix.group_size, "bits": matrix.bits, "mode": matrix.mode}
        return sums + mx.quantized_matmul(
            rows, matrix.weight, matrix.scales, matrix.get("biases"), transpose=True, **how
        )
    if hasattr(matrix, "onto"):  # adapted
        return matrix.onto(sums, rows)
    return sums + matrix(rows)  # divided between ranks, which none with a bias is
