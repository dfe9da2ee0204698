"""What need not be worked out again: encoded pictures, and the keys and values of what was read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat

import mlx.core as mx

from ..inputs.prompt import Picture, Prompt, Text
from ..models.kv_cache import KVCache

PREFIX_BYTES = 2**30  # some 85,000 positions of the 0.5B in half precision
FEATURE_BYTES = 256 * 2**20  # some 280 pictures of 1024 pixels for the 0.5B in float32

_PREFIXES = 64  # of conversations at most: every one is compared with every prompt

PositionKey = int | bytes  # what stands at a position: a token's id, or the key of the picture it belongs to


def position_keys(prompt: Prompt) -> list[PositionKey]:
    """One for each position."""
    return list(
        chain.from_iterable(
            part.ids if isinstance(part, Text) else repeat(part.key, part.positions) for part in prompt
        )
    )


class Features:
    """What one model's tower and projector made of pictures, by their content, (tokens, d) each.

    Holds at most `budget_bytes`; what was used longest ago goes first. Any number of sessions of that model
    may share one.
    """

    def __init__(self, budget_bytes: int = FEATURE_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[bytes, mx.array] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._entries.values())

    def get(self, picture: Picture) -> mx.array | None:
        found = self._entries.get(picture.key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            self._entries.move_to_end(picture.key)
        return found

    def subset(self, pictures: Iterable[Picture]) -> dict[bytes, mx.array]:
        """Of these, those that are held, by key; not counted as asked for."""
        return {p.key: self._entries[p.key] for p in pictures if p.key in self._entries}

    def put(self, pictures: Sequence[Picture], encoded: mx.array) -> None:
        """A batch of pictures and what became of them, (B, tokens, d)."""
        # Copies where there are several: a slice would keep the whole batch.
        rows = [encoded[0]] if len(pictures) == 1 else [row + 0 for row in encoded]
        mx.eval(rows)
        for picture, row in zip(pictures, rows, strict=True):
            self._entries[picture.key] = row
            self._entries.move_to_end(picture.key)
        while self._entries and self.nbytes > self.budget_bytes:
            self._entries.popitem(last=False)


class Prefix:
    """Keys and values of the positions read so far, and what stood at each of them.

    True at any moment, also when reading or answering was interrupted: a position counts once every layer
    holds it and what it was is known.
    """

    def __init__(self, caches: list[KVCache], known: Sequence[PositionKey] = ()) -> None:
        self.caches = caches
        self._rows = list(known)

    def __len__(self) -> int:
        """How many positions are known."""
        return min(len(self._rows), *(cache.offset for cache in self.caches))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for cache in self.caches for array in cache.arrays)

    @property
    def cached(self) -> list[PositionKey]:
        return self._rows[: len(self)]

    def common_length(self, others: Sequence[PositionKey]) -> int:
        """How many positions are known and the same."""
        pairs = zip(self._rows[: len(self)], others, strict=False)
        return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(self), len(others)))

    def resume(self, prompt: Prompt) -> tuple[int, Prompt]:
        """Keep what the prompt begins with; return how many positions that is, and what is left to read.

        The last position always is: the first token comes from it. A picture is kept whole or not at all.
        """
        wanted = position_keys(prompt)
        kept, rest = _split_at(prompt, min(self.common_length(wanted), len(wanted) - 1))
        for cache in self.caches:
            cache.trim(kept)
        self._rows = wanted
        return kept, rest

    def append(self, token: int) -> None:
        """A token of the answer, which the next step reads."""
        self._rows.append(token)

    def forget(self) -> None:
        self.caches = [KVCache(cache.how) for cache in self.caches]
        self._rows = []

    def fork(self, positions: int) -> Prefix:
        """Another that knows at most so many of the first positions; the two go on apart."""
        known = min(len(self), positions)
        caches = [cache.fork(known) for cache in self.caches]
        mx.eval([array for cache in caches for array in cache.arrays])
        return Prefix(caches, self._rows[:known])


class Prefixes:
    """What many conversations have read. The budget is in bytes; what was used longest ago goes first."""

    def __init__(self, budget_bytes: int = PREFIX_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self._entries: list[Prefix] = []  # used last, last

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return sum(prefix.nbytes for prefix in self._entries)

    def longest_match(self, prompt: Prompt, fresh: Callable[[], list[KVCache]]) -> Prefix:
        """Whatever knows most of what the prompt begins with, to go on from apart, or a fresh one."""
        wanted = position_keys(prompt)
        shared = {prefix: prefix.common_length(wanted) for prefix in self._entries}
        best = max(shared, key=lambda prefix: shared[prefix], default=None)
        if best is None or not shared[best]:
            return Prefix(fresh())
        self._entries.remove(best)
        self._entries.append(best)
        return best.fork(shared[best])

    def put(self, prefix: Prefix) -> None:
        """Keep it, in place of those that know a part of the same."""
        known = prefix.cached
        self._entries = [held for held in self._entries if held.common_length(known) < len(held)]
        self._entries.append(prefix)
        while self._entries and (self.nbytes > self.budget_bytes or len(self._entries) > _PREFIXES):
            del self._entries[0]


def _split_at(prompt: Prompt, place: int) -> tuple[int, Prompt]:
    """What comes from a position on, and that position: the front of a picture that it cuts."""
    start = 0
    for number, part in enumerate(prompt):
        if place < start + part.positions:
            if isinstance(part, Text):
                return place, (Text(part.ids[place - start :]), *prompt[number + 1 :])
            return start, prompt[number:]
        start += part.positions
    return start, ()
