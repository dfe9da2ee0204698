"""Each way of attending equals the plain definition, also where scores are extreme."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from fastvlm_mlx.kernels import attention
from fastvlm_mlx.kernels.attention import TABLE, AttentionProblem
from fastvlm_mlx.kernels.candidates import Candidate

Array = np.ndarray


@pytest.mark.parametrize("candidate", TABLE, ids=lambda candidate: candidate.name)
@pytest.mark.parametrize("shape", [(1, 2, 1, 32), (2, 3, 33, 32), (1, 1, 256, 32), (1, 2, 16, 8)])
@pytest.mark.parametrize("strength", [0.0, 1.0, 30.0])
def test_attention_equals_the_plain_definition(
    candidate: Candidate,
    shape: tuple[int, ...],
    strength: float,
    relative_error: Callable[[Array, Array], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_RUN", 1000)  # several runs
    q, k, v = (np.random.default_rng(n).standard_normal(shape, dtype=np.float32) for n in range(3))
    q *= np.float32(strength / shape[-1] ** 0.5)
    found = candidate.make(*map(mx.array, (q, k, v)))
    expected = AttentionProblem(*shape[1:]).expected(*(one.astype(np.float64) for one in (q, k, v)))
    assert relative_error(found, expected) < (2e-6 if strength < 2 else 1e-5)


def test_weights_that_vanish_vanish_quietly() -> None:
    """The largest score is thousands above the others."""
    q, k = mx.full((1, 1, 8, 32), 100.0), mx.full((1, 1, 8, 32), -1.0)
    k[:, :, 0] = 1.0
    v = mx.random.normal((1, 1, 8, 32), key=mx.random.key(0))
    assert mx.allclose(attention.by_powers(q, k, v), mx.broadcast_to(v[:, :, :1], v.shape), atol=1e-6)


def test_gradients_by_powers_are_those_of_the_softmax() -> None:
    given = [mx.random.normal((2, 3, 20, 8), key=mx.random.key(n)) for n in range(3)]
    cotangent = mx.random.normal((2, 3, 20, 8), key=mx.random.key(3))
    found, wanted = (mx.vjp(way, given, [cotangent])[1] for way in (attention.by_powers, attention.unfused))
    for mine, plain in zip(found, wanted, strict=True):
        assert mx.allclose(mine, plain, rtol=1e-4, atol=1e-5)
