"""What a block adds to its input: one operation, where the matrix is dense and whole."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn


def added(sums: mx.array, matrix: Any, rows: mx.array) -> mx.array:
    """sums + rows · matrixᵀ, without the matrix's bias: whoever has one puts it into the sums."""
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
