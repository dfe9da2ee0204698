"""Products with a model's matrices: the same, however they are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from fastvlm_mlx import blas, kernels
from fastvlm_mlx.models.linear import linear


@pytest.mark.parametrize("openblas", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("outputs", [7, 40, 41, 95])
@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
def test_a_product_in_pieces_is_the_whole_one(
    kind: Callable[..., Any],
    outputs: int,
    rows: int,
    openblas: bool,
    monkeypatch: pytest.MonkeyPatch,
    relative_error: Callable[[Any, Any], float],
) -> None:
    monkeypatch.setattr(kernels, "_PIECE", 20)
    monkeypatch.setattr(blas, "is_openblas", lambda: openblas)
    split, pieces = mx.split, []

    def noted(array: mx.array, ends: list[int]) -> list[mx.array]:
        pieces.extend(split(array, ends))
        return pieces

    monkeypatch.setattr(mx, "shard_names", noted)
    matrix = kind(outputs, 64) if kind is nn.Embedding else kind(64, outputs, bias=False)
    x = mx.random.normal((1, rows, 64), key=mx.random.key(0))
    found = linear(matrix, x)
    in_pieces = openblas and rows == 1 and outputs > 20 and mx.default_device() == mx.Device(mx.cpu)
    assert len(pieces) == (-(-outputs // 20) if in_pieces else 0)
    assert found.shape == (1, rows, outputs)
    assert relative_error(found, x @ matrix.weight.T) <= 1e-6


@pytest.mark.parametrize("packed", [False, True])
def test_an_embedding_is_a_head_packed_or_not(packed: bool) -> None:
    embedding: Any = nn.Embedding(96, 64)
    if packed:
        embedding = embedding.to_quantized(group_size=32, bits=8)
    x = mx.random.normal((2, 64), key=mx.random.key(1))
    assert mx.allclose(linear(embedding, x), embedding.as_linear(x), atol=1e-5)
