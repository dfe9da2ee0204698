"""Attention of the tower: q, k, v (B, heads, N, head_dim), scaled beforehand, no mask."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from . import lanes
from .candidates import CPU, GPUS, METAL, Candidate, Step, noise, with_gradient_of

_FUSED = (
    64  # the narrowest head that Metal's fused attention takes; below, MLX multiplies, and multiplies again
)
_RUN = 2**18  # scores that a core's own cache holds
_WORTH_IT = 2**14  # scores, of which a CPU's one slow operation costs more than many quick ones


def stock(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0)


def padded(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Zeros add nothing to a product, and make heads as wide as the fused kernel needs them."""
    head_dim = q.shape[-1]
    wider = [(0, 0), (0, 0), (0, 0), (0, max(_FUSED - head_dim, 0))]
    return stock(mx.pad(q, wider), mx.pad(k, wider), mx.pad(v, wider))[..., :head_dim]


def unfused(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return mx.softmax(q @ k.swapaxes(-1, -2), axis=-1, precise=True) @ v


def _by_powers(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """For the CPU, where MLX's 2^x is quicker than its e^x, in runs of queries that share the cores and fit
    their caches. Queries stand side by side: the largest of each column is found faster than of each row."""
    batch, heads, tokens, head_dim = q.shape
    q, k, v = (part.reshape(-1, tokens, head_dim) for part in (q * math.log2(math.e), k, v))
    ones = mx.ones((*v.shape[:-1], 1))
    summed = mx.concatenate([v, ones], axis=-1).swapaxes(-1, -2)  # the last row adds up the weights
    fair = -(-len(q) // lanes.part_count(len(q) * tokens**2))
    together, most = min(fair, max(1, _RUN // tokens**2)), max(1, min(tokens, _RUN // tokens))

    def run(some: slice, few: slice) -> mx.array:
        scores = k[some] @ q[some, few].swapaxes(-1, -2)
        return summed[some] @ mx.power(2.0, scores - scores.max(-2, keepdims=True))

    of_heads, of_queries = lanes.slices(len(q), together), lanes.slices(tokens, most)
    runs = lanes.run_all([partial(run, some, few) for some in of_heads for few in of_queries])
    each = len(of_queries)
    whole = [mx.concatenate(runs[first : first + each], -1) for first in range(0, len(runs), each)]
    y = mx.concatenate(whole).reshape(batch, heads, head_dim + 1, tokens)
    return (y[:, :, :-1] / y[:, :, -1:]).swapaxes(-1, -2)


by_powers = with_gradient_of(stock, _by_powers)

TABLE = (
    Candidate("stock", stock),
    Candidate("powers", by_powers, (CPU,), (mx.float32,)),
    Candidate("padded to 64", padded, (METAL,)),
    Candidate("unfused", unfused, GPUS),
)


@dataclass(frozen=True, slots=True)
class AttentionProblem:
    heads: int
    head_dim: int
    tokens: int

    @property
    def table(self) -> tuple[Candidate, ...]:
        return TABLE

    @property
    def key(self) -> str:
        return f"attention, {self.heads} heads of {self.head_dim}"

    @property
    def shape(self) -> str:
        return f"{self.tokens} tokens"

    @property
    def on_cpu(self) -> str:
        return "powers" if self.heads * self.tokens**2 >= _WORTH_IT else "stock"

    def small(self) -> AttentionProblem:
        return replace(self, tokens=33)  # a GPU's groups are of 32

    def inputs(self, dtype: mx.Dtype) -> tuple[mx.array, ...]:
        shape = (1, self.heads, self.tokens, self.head_dim)
        q, k, v = (noise(seed, shape, dtype) for seed in range(3))
        return q / self.head_dim**0.5, k, v

    def expected(self, *inputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        q, k, v = inputs
        scores = q @ k.swapaxes(-1, -2)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ v

    def step(self, candidate: Candidate, inputs: tuple[mx.array, ...]) -> Step:
        return lambda: candidate.make(*inputs)
