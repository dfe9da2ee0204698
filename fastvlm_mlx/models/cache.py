"""Keys and values of the positions seen so far, one cache a layer."""

from __future__ import annotations

import mlx.core as mx

_STEP = 256


class KVCache:
    """Grows by steps of 256 positions and is written in place between them."""

    def __init__(self) -> None:
        self.offset = 0
        self._keys: mx.array | None = None
        self._values: mx.array | None = None

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append (B, kv_heads, L, head_dim); return everything held."""
        start, end = self.offset, self.offset + keys.shape[2]
        self._keys = _grown(self._keys, start, end, keys)
        self._values = _grown(self._values, start, end, values)
        self._keys[..., start:end, :] = keys
        self._values[..., start:end, :] = values
        self.offset = end
        return self._keys[..., :end, :], self._values[..., :end, :]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch."""
        if self._keys is not None and self._values is not None:
            chosen = mx.array(rows)
            self._keys, self._values = self._keys[chosen], self._values[chosen]

    def trim(self, positions: int) -> None:
        """Forget all but the first so many."""
        self.offset = min(self.offset, positions)

    def fork(self, positions: int) -> KVCache:
        """Another that holds the first so many; what either does from there on is its own."""
        other = KVCache()
        other.offset = min(self.offset, positions)
        if self._keys is not None and self._values is not None:
            other._keys = self._keys[..., : other.offset, :]
            other._values = self._values[..., : other.offset, :]
        return other

    @property
    def arrays(self) -> list[mx.array]:
        return [a for a in (self._keys, self._values) if a is not None]


def _grown(held: mx.array | None, used: int, needed: int, like: mx.array) -> mx.array:
    if held is not None and needed <= held.shape[2]:
        return held
    batch, heads, _, dim = like.shape
    room = -(-needed // _STEP) * _STEP
    fresh = mx.zeros((batch, heads, room - used, dim), like.dtype)
    return fresh if held is None else mx.concatenate([held[..., :used, :], fresh], axis=2)
