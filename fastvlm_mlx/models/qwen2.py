"""Qwen2 with q, k, v in one matmul and gate, up in another (merged at conversion).

Whole, or divided between the ranks of a group: each keeps its heads, its part of every MLP and its rows of an
untied head, and all go through every step together.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_linear

from ..config import Quantization, TextConfig
from ..kernels import swiglu
from .cache import KVCache, Mask, attend

Group = mx.distributed.Group


def added(x: mx.array, matrix: nn.Linear, hidden: mx.array) -> mx.array:
    """x + matrix(hidden), one operation where the matrix is dense and whole"""
    if type(matrix) is nn.Linear and "bias" not in matrix:
        return mx.addmm(x, hidden, matrix.weight.T)
    return x + matrix(hidden)


class Attention(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self._heads, self._kv_heads, self._head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = nn.Linear(config.hidden_size, (config.heads + 2 * config.kv_heads) * config.head_dim)
        self.out = nn.Linear(config.heads * config.head_dim, config.hidden_size, bias=False)
        self._rope_theta = config.rope_theta

    def __call__(
        self, x: mx.array, cache: KVCache, position: int | mx.array, mask: Mask, onto: mx.array
    ) -> mx.array:
        batch, length, _ = x.shape
        heads = self.qkv(x).reshape(batch, length, -1, self._head_dim).swapaxes(1, 2)
        qk, v = mx.split(heads, (self._heads + self._kv_heads,), axis=1)
        q, k = mx.split(self._rotated(qk, position), (self._heads,), axis=1)
        keys, values = cache.extend(k, v)
        x = attend(q, keys, values, self._head_dim**-0.5, mask)
        return added(onto, self.out, x.swapaxes(1, 2).reshape(batch, length, -1))

    def shard(self, group: Group) -> None:
        """Keep this rank's queries, with the keys and values that they look at."""
        ends = [self._heads * self._head_dim, (self._heads + self._kv_heads) * self._head_dim]
        self.qkv = shard_linear(self.qkv, "all-to-sharded", segments=ends, group=group)
        self.out = shard_linear(self.out, "sharded-to-all", group=group)
        self._heads, self._kv_heads = self._heads // group.size(), self._kv_heads // group.size()

    def _rotated(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x, self._head_dim, traditional=False, base=self._rope_theta, scale=1.0, offset=offset
        )


class MLP(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array, onto: mx.array) -> mx.array:
        return added(onto, self.down, swiglu(*mx.split(self.gate_up(x), 2, axis=-1)))

    def shard(self, group: Group) -> None:
        self.gate_up = shard_linear(self.gate_up, "all-to-sharded", segments=2, group=group)
        self.down = shard_linear(self.down, "sharded-to-all", group=group)


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array, cache: KVCache, position: int | mx.array, mask: Mask) -> mx.array:
        x = self.attention(self.attention_norm(x), cache, position, mask, onto=x)
        return self.mlp(self.mlp_norm(x), onto=x)


class Gathered(nn.Module):
    """A matrix of which every rank has some rows, and afterwards all outputs."""

    def __init__(self, matrix: nn.Linear, group: Group):
        super().__init__()
        self.own = shard_linear(matrix, "all-to-sharded", group=group)
        self._group = group

    def __call__(self, x: mx.array) -> mx.array:
        parts = mx.distributed.all_gather(self.own(x)[None], group=self._group)  # (ranks, …, own rows)
        return mx.moveaxis(parts, 0, -2).flatten(-2)


class Qwen2(nn.Module):
    """Rows in, hidden states out; `logits` is a call of its own so that prefill pays for one position."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.layers)]
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.packing: Quantization | None = None  # of keys and values

    def __call__(self, rows: mx.array, caches: Sequence[KVCache]) -> mx.array:
        """(B, L, d) -> (B, L, d)"""
        position, mask = caches[0].position, caches[0].mask(rows.shape[1])  # of all layers alike
        for layer, cache in zip(self.layers, caches, strict=True):
            rows = layer(rows, cache, position, mask)
        return self.norm(rows)

    def logits(self, hidden: mx.array) -> mx.array:
        """(…, d) -> (…, vocabulary), padded rows included"""
        return self.head(hidden) if "head" in self else self.embedding.as_linear(hidden)

    def shard(self, group: Group) -> None:
        """Keep this rank's part of the weights; before they are evaluated, nothing else is ever held."""
        for layer in self.layers:
            layer.attention.shard(group)
            layer.mlp.shard(group)
        if "head" in self and self.head.weight.shape[0] % group.size() == 0:
            self.head = Gathered(self.head, group)  # type: ignore[assignment]  # called as the other is

    def new_caches(self) -> list[KVCache]:
        return [KVCache(self.packing) for _ in self.layers]
