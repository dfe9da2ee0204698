"""Keys and values of the positions seen so far, one cache a layer."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx

_STEP = 256


class KVCache:
    """Grows by steps of 256 positions and is written in place between them.

    Rows of unequal length stand with their ends together: the shorter begin with columns that hold nothing.
    """

    def __init__(self) -> None:
        self.offset = 0  # columns held
        self._empty: tuple[int, ...] = ()  # of each row's columns, if they are not equally long
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

    @property
    def position(self) -> int | mx.array:
        """Where what comes next stands, in every row or in each; in all layers alike."""
        return mx.array([self.offset - empty for empty in self._empty]) if self._empty else self.offset

    def mask(self, length: int) -> mx.array | Literal["causal"] | None:
        """What so many new positions may see, in all layers alike."""
        if not self._empty:
            return "causal" if length > 1 else None
        columns, own = mx.arange(self.offset + length), mx.arange(self.offset, self.offset + length)
        held = columns >= mx.array(self._empty)[:, None, None, None]
        return held & (columns <= own[:, None])

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch."""
        if self._keys is None or self._values is None:
            return
        chosen, empty = mx.array(rows), [self._empty[row] for row in rows] if self._empty else []
        cut = min(empty, default=0)
        self._keys, self._values = self._keys[chosen, :, cut:], self._values[chosen, :, cut:]
        self.offset -= cut
        self._empty = tuple(count - cut for count in empty) if any(count > cut for count in empty) else ()

    def join(self, other: KVCache) -> None:
        """Go on with the rows of both, those of the other last."""
        end = max(self.offset, other.offset)
        empty = [*self._emptied(end), *other._emptied(end)]
        self._keys = _stacked(self._keys, self.offset, other._keys, other.offset)
        self._values = _stacked(self._values, self.offset, other._values, other.offset)
        self._empty = tuple(empty) if any(empty) else ()
        self.offset = end

    def row(self, row: int) -> KVCache:
        """One of the rows by itself; what either does from there on is its own."""
        empty = self._empty[row] if self._empty else 0
        other = KVCache()
        other.offset = self.offset - empty
        if self._keys is not None and self._values is not None:
            held = slice(row, row + 1), slice(None), slice(empty, self.offset)
            # Copies: a part of the batch's arrays would keep them whole.
            other._keys, other._values = self._keys[held] + 0, self._values[held] + 0
        return other

    def _emptied(self, end: int) -> list[int]:
        rows = 0 if self._keys is None else self._keys.shape[0]
        return [end - self.offset + empty for empty in self._empty or (0,) * rows]

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


def _stacked(first: mx.array | None, used: int, second: mx.array | None, others: int) -> mx.array:
    """Both batches, ends together, with room for a step."""
    assert first is not None
    assert second is not None
    end = max(used, others)
    room = -(-(end + 1) // _STEP) * _STEP - end
    parts = [
        mx.pad(held[..., :length, :], [(0, 0), (0, 0), (end - length, room), (0, 0)])
        for held, length in ((first, used), (second, others))
    ]
    return mx.concatenate(parts)


def _grown(held: mx.array | None, used: int, needed: int, like: mx.array) -> mx.array:
    if held is not None and needed <= held.shape[2]:
        return held
    batch, heads, _, dim = like.shape
    room = -(-needed // _STEP) * _STEP
    fresh = mx.zeros((batch, heads, room - used, dim), like.dtype)
    return fresh if held is None else mx.concatenate([held[..., :used, :], fresh], axis=2)
