"""Qwen2 with q, k, v in one matmul and gate, up in another (merged at conversion).

It can be sharded over the ranks of a group: each keeps its heads, its part of every MLP and its rows of an
untied head, and all take every step together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_linear

from ..config import Quantization, TextConfig
from ..kernels import swiglu
from .kv_cache import KVCache, Mask, attend
from .linear import add_linear, linear

Group = mx.distributed.Group


class RopeOffsets(NamedTuple):
    """RoPE offsets, shared or per row."""

    first: int | mx.array
    per_head: mx.array | None = None  # for one position: an offset for every head of every row


class QwenAttention(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self._heads, self._kv_heads, self._head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = nn.Linear(config.hidden_size, (config.heads + 2 * config.kv_heads) * config.head_dim)
        self.out = nn.Linear(config.heads * config.head_dim, config.hidden_size, bias=False)
        self._rope_theta = config.rope_theta

    def __call__(
        self, x: mx.array, cache: KVCache, places: RopeOffsets, mask: Mask, onto: mx.array
    ) -> mx.array:
        batch, length, _ = x.shape
        heads = self.qkv(x).reshape(batch, length, -1, self._head_dim).swapaxes(1, 2)
        if places.per_head is None:
            qk, v = mx.split(heads, (self._heads + self._kv_heads,), axis=1)
            q, k = mx.split(self._rotate(qk, places.first), (self._heads,), axis=1)
            both = mx.stack([k, v])
        else:
            alone = self._rotate(heads.reshape(-1, 1, 1, self._head_dim), places.per_head)
            q, both = mx.split(alone.reshape(heads.shape), (self._heads,), axis=1)
            both = both.reshape(batch, 2, self._kv_heads, 1, self._head_dim).swapaxes(0, 1)
        keys, values = cache.extend(both)
        x = attend(q, keys, values, self._head_dim**-0.5, mask)
        return add_linear(onto, self.out, x.swapaxes(1, 2).reshape(batch, length, -1))

    def offsets_per_head(self, position: int | mx.array, batch: int) -> mx.array:
        """Offsets for one position with all heads as rows. Values get offset 0, which rotates nothing.

        So one rotation serves queries, keys and values, and keys and values come out side by side.
        """
        turning = mx.arange(self._heads + 2 * self._kv_heads) < self._heads + self._kv_heads
        of_rows = mx.broadcast_to(mx.array(position), (batch,))
        return (of_rows[:, None] * turning).flatten()

    def shard(self, group: Group) -> None:
        """Keep this rank's queries, with their keys and values."""
        ends = [self._heads * self._head_dim, (self._heads + self._kv_heads) * self._head_dim]
        self.qkv = shard_linear(self.qkv, "all-to-sharded", segments=ends, group=group)
        self.out = shard_linear(self.out, "sharded-to-all", group=group)
        self._heads, self._kv_heads = self._heads // group.size(), self._kv_heads // group.size()

    def _rotate(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x, self._head_dim, traditional=False, base=self._rope_theta, scale=1.0, offset=offset
        )


class MLP(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array, onto: mx.array) -> mx.array:
        return add_linear(onto, self.down, swiglu(*mx.split(linear(self.gate_up, x), 2, axis=-1)))

    def shard(self, group: Group) -> None:
        self.gate_up = shard_linear(self.gate_up, "all-to-sharded", segments=2, group=group)
        self.down = shard_linear(self.down, "sharded-to-all", group=group)


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = QwenAttention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array, cache: KVCache, places: RopeOffsets, mask: Mask) -> mx.array:
        x = self.attention(self.attention_norm(x), cache, places, mask, onto=x)
        return self.mlp(self.mlp_norm(x), onto=x)


class GatheredLinear(nn.Module):
    """A matrix sharded by rows; every rank gets all outputs."""

    def __init__(self, matrix: nn.Linear, group: Group):
        super().__init__()
        self.own = shard_linear(matrix, "all-to-sharded", group=group)
        self._group = group

    def __call__(self, x: mx.array) -> mx.array:
        parts = mx.distributed.all_gather(self.own(x)[None], group=self._group)  # (ranks, …, own rows)
        return mx.moveaxis(parts, 0, -2).flatten(-2)


class Qwen2(nn.Module):
    """Embeddings in, hidden states out. `logits` is separate so that prefill computes it for one position
    only."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.layers)]
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.packing: Quantization | None = None  # of the KV cache

    def __call__(self, rows: mx.array, caches: Sequence[KVCache]) -> mx.array:
        """(B, L, d) -> (B, L, d)"""
        batch, length, _ = rows.shape
        position, mask = caches[0].position, caches[0].mask(length)  # shared by all layers
        places = RopeOffsets(position)
        if length == 1 and mx.default_device() == mx.Device(mx.gpu):  # on a CPU that would be slower
            places = RopeOffsets(position, self.layers[0].attention.offsets_per_head(position, batch))
        for layer, cache in zip(self.layers, caches, strict=True):
            rows = layer(rows, cache, places, mask)
        return self.norm(rows)

    def logits(self, hidden: mx.array) -> mx.array:
        """(…, d) -> (…, vocabulary), padded rows included"""
        return linear(self.head if "head" in self else self.embedding, hidden)

    def shard(self, group: Group) -> None:
        """Keep this rank's part of the weights. Called before they are evaluated, so the rest is never in
        memory."""
        for layer in self.layers:
            layer.attention.shard(group)
            layer.mlp.shard(group)
        if "head" in self and self.head.weight.shape[0] % group.size() == 0:
            self.head = GatheredLinear(self.head, group)  # type: ignore[assignment]  # called as the other is

    def new_caches(self) -> list[KVCache]:
        return [KVCache(self.packing) for _ in self.layers]
