"""What need not be worked out again: encoded pictures, and the keys and values of what was read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain, repeat

import mlx.core as mx

from .models.cache import KVCache
from .prompt import Picture, Prompt, Text

FEATURE_BYTES = 256 * 2**20  # some 280 pictures of 1024 pixels for the 0.5B in float32

Row = int | bytes  # what stands at a position: a token's id, or the key of the picture it belongs to


def rows(prompt: Prompt) -> list[Row]:
    """One for each position."""
    return list(
        chain.from_iterable(
            part.ids if isinstance(part, Text) else repeat(part.key, part.positions) for part in prompt
        )
    )


class Features:
    """What one model's tower and projector made of pictures, by their content, (tokens, d) each.

    Holds at most `budget_bytes`; what was used longest ago goes first. Any number of sessions of that model
    may share one, in one thread.
    """

    def __init__(self, budget_bytes: int = FEATURE_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self.hits = 0
        self.misses = 0
        self._held: OrderedDict[bytes, mx.array] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._held.values())

    def get(self, picture: Picture) -> mx.array | None:
        found = self._held.get(picture.key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            self._held.move_to_end(picture.key)
        return found

    def of(self, pictures: Iterable[Picture]) -> dict[bytes, mx.array]:
        """Of these, those that are held, by key; not counted as asked for."""
        return {p.key: self._held[p.key] for p in pictures if p.key in self._held}

    def put(self, pictures: Sequence[Picture], encoded: mx.array) -> None:
        """A batch of pictures and what became of them, (B, tokens, d)."""
        for number, picture in enumerate(pictures):
            alone = (
                encoded[number] if len(pictures) == 1 else encoded[number] + 0
            )  # not a part of the batch's
            self._held[picture.key] = alone
            self._held.move_to_end(picture.key)
        while self._held and self.nbytes > self.budget_bytes:
            self._held.popitem(last=False)


class Prefix:
    """Keys and values of the positions read so far, and what stood at each of them.

    True at any moment, also when reading or answering was interrupted: a position counts once every layer
    holds it and what it was is known.
    """

    def __init__(self, caches: list[KVCache], known: Sequence[Row] = ()) -> None:
        self.caches = caches
        self._rows = list(known)

    def __len__(self) -> int:
        """How many positions are known."""
        return min(len(self._rows), *(cache.offset for cache in self.caches))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for cache in self.caches for array in cache.arrays)

    def common(self, others: Sequence[Row]) -> int:
        """How many positions are known and the same."""
        pairs = zip(self._rows[: len(self)], others, strict=False)
        return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(self), len(others)))

    def resume(self, prompt: Prompt) -> tuple[int, Prompt]:
        """Keep what the prompt begins with; return how many positions that is, and what is left to read.

        The last position always is: the first token comes from it. A picture is kept whole or not at all.
        """
        wanted = rows(prompt)
        kept, rest = _after(prompt, min(self.common(wanted), len(wanted) - 1))
        for cache in self.caches:
            cache.trim(kept)
        self._rows = wanted
        return kept, rest

    def said(self, token: int) -> None:
        """A token of the answer, which the next step reads."""
        self._rows.append(token)

    def fork(self, positions: int) -> Prefix:
        """Another that knows at most so many of the first positions; the two go on apart."""
        known = min(len(self), positions)
        return Prefix([cache.fork(known) for cache in self.caches], self._rows[:known])


def _after(prompt: Prompt, place: int) -> tuple[int, Prompt]:
    """What comes from a position on, and that position: the front of a picture that it cuts."""
    start = 0
    for number, part in enumerate(prompt):
        if place < start + part.positions:
            if isinstance(part, Text):
                return place, (Text(part.ids[place - start :]), *prompt[number + 1 :])
            return start, prompt[number:]
        start += part.positions
    return start, ()
