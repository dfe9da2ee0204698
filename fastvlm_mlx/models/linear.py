"""Products with a model's matrices: dense, quantized, with an adapter, or sharded."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import kernels


def linear(matrix: Any, rows: mx.array) -> mx.array:
    """rows · matrixᵀ for a matrix without bias, an output head or a tied embedding."""
    if type(matrix) in (nn.Linear, nn.Embedding):
        return kernels.product(rows, matrix.weight)
    y: mx.array = matrix.as_linear(rows) if hasattr(matrix, "as_linear") else matrix(rows)
    return y


def add_linear(sums: mx.array, matrix: Any, rows: mx.array) -> mx.array:
    """sums + rows · matrixᵀ without the matrix's bias, which the caller adds to the sums. One operation if
    the matrix is dense."""
    if type(matrix) is nn.Linear:
        return mx.addmm(sums, rows, matrix.weight.T)
    if isinstance(matrix, nn.QuantizedLinear):
        how = {"group_size": matrix.group_size, "bits": matrix.bits, "mode": matrix.mode}
        return sums + mx.quantized_matmul(
            rows, matrix.weight, matrix.scales, matrix.get("biases"), transpose=True, **how
        )
    if hasattr(matrix, "onto"):  # with an adapter
        return matrix.onto(sums, rows)
    return sums + matrix(rows)  # sharded; such a matrix has no bias
