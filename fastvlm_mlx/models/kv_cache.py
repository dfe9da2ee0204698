"""The KV cache, one a layer, in floats or quantized, and attention over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import mlx.core as mx

from ..config import GROUP_SIZES, Quantization
from ..errors import ConfigError

Mask = mx.array | Literal["causal"] | None
_STEP = 256
BITS = (4, 8)


class Packed(NamedTuple):
    """Quantized (B, kv_heads, L, head_dim): packed words, with a scale and a bias for each group."""

    words: mx.array
    scales: mx.array
    biases: mx.array
    how: Quantization

    @property
    def floats(self) -> mx.array:
        return mx.dequantize(self.words, self.scales, self.biases, self.how.group_size, self.how.bits)


def packing(bits: int, group_size: int, head_dim: int) -> Quantization:
    """Quantization with the largest group that divides a head and is at most `group_size`."""
    if bits not in BITS:
        raise ConfigError(f"keys and values take {' or '.join(map(str, BITS))} bits, not {bits}")
    if group_size not in GROUP_SIZES:
        raise ConfigError(f"no group size {group_size}; choose one of {', '.join(map(str, GROUP_SIZES))}")
    fitting = [size for size in GROUP_SIZES if size <= group_size and head_dim % size == 0]
    if not fitting:
        raise ConfigError(
            f"the model's heads are {head_dim} wide, which no group of {' or '.join(map(str, GROUP_SIZES))} "
            "divides; keep keys and values as floats"
        )
    return Quantization(bits, max(fitting))


def attend(q: mx.array, k: mx.array | Packed, v: mx.array | Packed, scale: float, mask: Mask) -> mx.array:
    """Attention of queries (B, heads, L, head_dim) over a cache's keys and values."""
    if isinstance(k, Packed):
        assert isinstance(v, Packed)
        if q.shape[2] == 1 or mx.default_device() == mx.Device(mx.gpu):
            return _attend_packed(q, k, v, scale, mask)
        # One layer at a time: on a CPU, products of many rows with packed matrices are slow.
        k, v = k.floats, v.floats
    assert isinstance(v, mx.array)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def _attend_packed(q: mx.array, k: Packed, v: Packed, scale: float, mask: Mask) -> mx.array:
    """Attention without unpacking; the queries that share a key are rows of one product."""
    (batch, heads, length, dim), kv_heads, held = q.shape, k.words.shape[1], k.words.shape[2]
    rows = (scale * q).reshape(batch, kv_heads, -1, dim)
    scores = mx.quantized_matmul(rows, *k[:3], True, k.how.group_size, k.how.bits)
    scores = scores.reshape(batch, heads, length, held)
    if isinstance(mask, str):
        mask = mx.arange(held) <= mx.arange(held - length, held)[:, None]
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    weights = mx.softmax(scores, axis=-1, precise=True).reshape(batch, kv_heads, -1, held)
    return mx.quantized_matmul(weights, *v[:3], False, v.how.group_size, v.how.bits).reshape(q.shape)


def split_kv(both: mx.array) -> tuple[mx.array, mx.array]:
    """Keys and values as views; indexing would copy them."""
    keys, values = mx.split(both, 2)
    return keys.squeeze(0), values.squeeze(0)


class KVCache:
    """Grows in steps of 256 positions and is written in place between them.

    Rows of unequal length are aligned at their ends: shorter ones are padded at the start. With `how`,
    positions are quantized one by one as they come."""

    def __init__(self, how: Quantization | None = None) -> None:
        self.offset = 0  # columns in use
        self.how = how
        self._padding: tuple[int, ...] = ()  # padding at the start of each row, if lengths differ
        self._arrays: tuple[
            mx.array, ...
        ] = ()  # keys and values in one array, or its packed parts, with spare capacity

    def extend(self, both: mx.array) -> tuple[mx.array, mx.array] | tuple[Packed, Packed]:
        """Append keys and values (2, B, kv_heads, L, head_dim); return all keys, all values."""
        if self.how is None:
            (held,) = self.append(both)
            return split_kv(held)
        parts = self.append(*mx.quantize(both, self.how.group_size, self.how.bits))
        words, scales, biases = map(split_kv, parts)
        keys, values = (Packed(words[kind], scales[kind], biases[kind], self.how) for kind in (0, 1))
        return keys, values

    def append(self, *parts: mx.array) -> list[mx.array]:
        """Append parts as `arrays` has them; return all of each."""
        start, end = self.offset, self.offset + parts[0].shape[-2]
        before: Sequence[mx.array | None] = self._arrays or [None] * len(parts)
        self._arrays = tuple(_grow(held, start, end, part) for held, part in zip(before, parts, strict=True))
        for held, part in zip(self._arrays, parts, strict=True):
            held[..., start:end, :] = part
        self.offset = end
        return [held[..., :end, :] for held in self._arrays]

    @property
    def position(self) -> int | mx.array:
        """The next position, shared or per row; the same in all layers."""
        return mx.array([self.offset - empty for empty in self._padding]) if self._padding else self.offset

    def mask(self, length: int) -> Mask:
        """The attention mask for `length` new positions; the same in all layers."""
        if not self._padding:
            return "causal" if length > 1 else None
        columns, own = mx.arange(self.offset + length), mx.arange(self.offset, self.offset + length)
        held = columns >= mx.array(self._padding)[:, None, None, None]
        return held & (columns <= own[:, None])

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows of the batch."""
        if not self._arrays:
            return
        chosen, empty = mx.array(rows), [self._padding[row] for row in rows] if self._padding else []
        cut = min(empty, default=0)
        self._arrays = tuple(held[:, chosen, :, cut:] for held in self._arrays)
        self.offset -= cut
        self._padding = tuple(count - cut for count in empty) if any(count > cut for count in empty) else ()

    def join(self, other: KVCache) -> None:
        """Append the rows of another cache."""
        end = max(self.offset, other.offset)
        empty = [*self._padding_at(end), *other._padding_at(end)]
        self._arrays = tuple(
            _stack(first, self.offset, second, other.offset)
            for first, second in zip(self._arrays, other._arrays, strict=True)
        )
        self._padding = tuple(empty) if any(empty) else ()
        self.offset = end

    def row(self, row: int) -> KVCache:
        """A copy of one row."""
        empty = self._padding[row] if self._padding else 0
        other = KVCache(self.how)
        other.offset = self.offset - empty
        # Copies: slices would keep the batch's arrays alive.
        other._arrays = tuple(held[:, row : row + 1, :, empty : self.offset] + 0 for held in self._arrays)
        return other

    def _padding_at(self, end: int) -> list[int]:
        rows = self._arrays[0].shape[1] if self._arrays else 0
        return [end - self.offset + empty for empty in self._padding or (0,) * rows]

    def trim(self, positions: int) -> None:
        """Keep the first `positions` only."""
        self.offset = min(self.offset, positions)

    def fork(self, positions: int) -> KVCache:
        """An independent cache with the first `positions`."""
        other = KVCache(self.how)
        other.offset = min(self.offset, positions)
        other._arrays = tuple(held[..., : other.offset, :] for held in self._arrays)
        return other

    @property
    def arrays(self) -> list[mx.array]:
        """Keys and values (2, B, kv_heads, capacity, head_dim), or their words, scales and biases."""
        return list(self._arrays)


def _stack(first: mx.array, used: int, second: mx.array, others: int) -> mx.array:
    """Both batches aligned at their ends, with capacity for another step."""
    end = max(used, others)
    room = -(-(end + 1) // _STEP) * _STEP - end
    parts = [
        mx.pad(held[..., :length, :], [(0, 0)] * 3 + [(end - length, room), (0, 0)])
        for held, length in ((first, used), (second, others))
    ]
    return mx.concatenate(parts, axis=1)


def _grow(held: mx.array | None, used: int, needed: int, like: mx.array) -> mx.array:
    if held is not None and needed <= held.shape[-2]:
        return held
    *outer, _, dim = like.shape
    room = -(-needed // _STEP) * _STEP
    fresh = mx.zeros((*outer, room - used, dim), like.dtype)
    return fresh if held is None else mx.concatenate([held[..., :used, :], fresh], axis=-2)
