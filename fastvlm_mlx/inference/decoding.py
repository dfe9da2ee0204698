"""Answers in the making, side by side: any may begin or leave while the others go on.

batch = Batch(model, tokenizer, stop_ids)
batch.admit([batch.row(sampling, max_tokens)], [prompt], features, caches)
while batch.rows:
    for row, event in batch.step(): ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten

from ..inputs.prompt import Picture, Prompt, positions
from ..inputs.tokenizer import Detokenizer, Tokenizer
from ..kernels import begun
from ..models.fastvlm import FastVLM
from ..models.kv_cache import KVCache
from .caches import Features
from .sampling import Sampler, Sampling

PREFILL_CHUNK = 512  # positions a step, of all prompts together: bounds their activations
PIXELS_AT_ONCE = 4 * 1024 * 1024  # bounds the tower's activations; one picture may have more


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt has been read. The first token follows without further work."""

    vision_s: float  # tower and projector, every picture
    prefill_s: float  # language model over all positions, first token chosen
    image_tokens: int
    text_tokens: int
    projector_s: float = 0.0  # of vision_s
    reused_tokens: int = 0  # known from before, beside those two
    read_s: float = 0.0  # before, with low_memory: loading the language model

    @property
    def tokens(self) -> int:
        return self.image_tokens + self.text_tokens + self.reused_tokens


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    text: str  # "" while a multi-byte character is incomplete
    logprob: float | None = None  # where it was asked for, before temperature and filters
    likeliest: tuple[tuple[int, float], ...] = ()  # ids and their logprobs


@dataclass(frozen=True, slots=True)
class Finished:
    reason: Literal["stop", "length"]
    text: str  # what an answer cut inside a character still owes
    tokens: int  # the stop token not counted
    decode_s: float  # after the first token
    peak_bytes: int
    guessed: int = 0  # tokens that a guesser proposed
    right: int = 0  # those that were said


Event = Prefilled | Token | Finished


class Form(Protocol):
    """What an answer must look like: which ids may come next, told what came."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """(vocabulary,)"""

    def said(self, token: int) -> None: ...


class Guesser(Protocol):
    """Proposes what may come next, to be checked by the model in one go."""

    def guess(self, said: Sequence[int], most: int) -> Sequence[int]:
        """At most so many ids after all that was said."""


@dataclass(slots=True, eq=False)
class Row:
    """One answer in the making."""

    sampler: Sampler
    detokenizer: Detokenizer
    room: int  # tokens at most
    likeliest: int | None = None  # of how many ids to tell the logprobs; None tells none
    form: Form | None = None
    guesser: Guesser | None = None  # of use to one who answers greedily and alone
    said: int = 0
    done: bool = False  # leaves before the next step; who loses interest may set it
    began: float = 0.0
    told: list[tuple[mx.array, ...]] = field(default_factory=list)  # logprobs of tokens still to be looked at
    ids: list[int] = field(default_factory=list)  # what was said, for the guesser
    guessed: int = 0
    right: int = 0

    @property
    def plain(self) -> bool:
        """Nothing but the likeliest token is wanted."""
        return self.sampler.greedy and self.form is None and self.likeliest is None


class Batch:
    """While the caller looks at one token of each answer, the next ones are already being computed."""

    def __init__(self, model: FastVLM, tokenizer: Tokenizer, stop_ids: Collection[int]):
        self.rows: list[Row] = []
        self.model, self._tokenizer, self._stop_ids = model, tokenizer, stop_ids
        self._caches: list[KVCache] = []
        self._said = mx.zeros((0,), mx.uint32)  # what was looked at last
        self._next: mx.array | None = None  # chosen after that, if it has been

    def row(
        self,
        sampling: Sampling,
        room: int,
        likeliest: int | None = None,
        form: Form | None = None,
        guesser: Guesser | None = None,
    ) -> Row:
        sampler = Sampler(sampling, self._tokenizer.size)
        return Row(sampler, Detokenizer(self._tokenizer), room, likeliest, form, guesser)

    def admit(
        self,
        rows: Sequence[Row],
        prompts: Sequence[Prompt],
        features: Mapping[Picture, mx.array],
        caches: list[KVCache],
        between: Callable[[], None] = lambda: None,
    ) -> float:
        """Prefill prompts of one length after what `caches` hold, and choose their first tokens; returns
        seconds.

        `between()` runs after each chunk, so that other answers make progress.
        """
        began = time.perf_counter()
        embedded = mx.concatenate([self.model.embed(prompt, features) for prompt in prompts])
        self._start(rows, caches, read(self.model, embedded, caches, between))
        return time.perf_counter() - began

    def _start(self, rows: Sequence[Row], caches: list[KVCache], hidden: mx.array) -> None:
        self._sweep()
        first = self._choose(rows, hidden)
        mx.eval(first)
        if not self.rows:
            self.rows, self._caches, self._said, self._next = list(rows), caches, first, first
        else:
            running = self._following() if self._next is None else self._next
            self._said = mx.concatenate([self._said, first])
            self._next = mx.concatenate([running, first])
            self.rows += rows
            for held, new in zip(self._caches, caches, strict=True):
                held.join(new)
        began = time.perf_counter()
        for row in rows:
            row.began, row.done = began, row.room == 0

    def clear(self) -> None:
        """Drop all answers."""
        self.rows, self._caches = [], []
        self._said, self._next = mx.zeros((0,), mx.uint32), None

    def step(self) -> list[tuple[Row, Token | Finished]]:
        """A token of each answer, or several where they were guessed; with its last, that it is finished."""
        self._sweep()
        if not self.rows:
            return []
        if len(self.rows) == 1 and self.rows[0].plain and self.rows[0].guesser:
            return self._leap(self.rows[0], self.rows[0].guesser)
        self._said = self._following() if self._next is None else self._next
        self._next = None
        if any(row.said + 1 < row.room for row in self.rows) and all(row.form is None for row in self.rows):
            self._next = self._following()
            mx.async_eval(self._next)
        ids: list[int] = self._said.tolist()  # type: ignore[assignment]
        return [event for row, id in zip(self.rows, ids, strict=True) for event in self._look(row, id)]

    def _leap(self, row: Row, guesser: Guesser) -> list[tuple[Row, Token | Finished]]:
        """The next token, and with it as many as were guessed rightly: all are read in one go."""
        first = self._following() if self._next is None else self._next
        ids: list[int] = first.tolist()  # type: ignore[assignment]
        events = self._look(row, ids[0])
        self._said, self._next = first, None
        if row.done:
            return events
        guess = list(guesser.guess(row.ids, row.room - row.said))
        rows = self.model.language.embedding(mx.array([[ids[0], *guess]]))
        hidden = self.model.language(rows, self._caches)[0]
        chosen: list[int] = self._choose([row], hidden).tolist()  # type: ignore[assignment]
        right = next((n for n, id in enumerate(guess) if id != chosen[n]), len(guess))
        row.guessed, row.right = row.guessed + len(guess), row.right + right
        for cache in self._caches:
            cache.trim(cache.offset - (len(guess) - right))
        for id in guess[:right]:
            if not row.done:
                events += self._look(row, id)
        self._next = mx.array(chosen[right : right + 1])
        return events

    def _look(self, row: Row, id: int) -> list[tuple[Row, Token | Finished]]:
        """What the next token of an answer means for it."""
        told = row.told.pop(0) if row.told else None
        if id in self._stop_ids:
            return [(row, self.finish(row, "stop"))]
        row.said += 1
        if row.form is not None:
            row.form.said(id)
        if row.guesser is not None:
            row.ids.append(id)
        token = Token(id, row.detokenizer.add(id), *_told(told))
        return [(row, token), *([(row, self.finish(row, "length"))] if row.said == row.room else [])]

    def finish(self, row: Row, reason: Literal["stop", "length"]) -> Finished:
        """Let an answer end here."""
        row.done = True
        decode_s = time.perf_counter() - row.began
        owed, peak = row.detokenizer.finish(), mx.get_peak_memory()
        return Finished(reason, owed, row.said, decode_s, peak, row.guessed, row.right)

    def caches_of(self, row: Row) -> list[KVCache]:
        """What was read for an answer, and the answer itself; until the next step."""
        place = self.rows.index(row)
        own = [cache.row(place) for cache in self._caches]
        mx.eval([array for cache in own for array in cache.arrays])  # or the next step would copy the batch
        return own

    def _sweep(self) -> None:
        """Who has finished leaves."""
        going = [place for place, row in enumerate(self.rows) if not row.done]
        if len(going) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in going]
        if not going:
            self._caches, self._next = [], None
            return
        chosen = mx.array(going)
        self._said = self._said[chosen]
        self._next = None if self._next is None else self._next[chosen]
        for cache in self._caches:
            cache.keep(going)

    def _following(self) -> mx.array:
        rows = self.model.language.embedding(self._said[:, None])
        return self._choose(self.rows, self.model.language(rows, self._caches)[:, -1])

    def _choose(self, rows: Sequence[Row], hidden: mx.array) -> mx.array:
        """(B, d) -> (B,); of one row also at several positions"""
        logits = self.model.language.logits(hidden)[:, : self._tokenizer.size]  # padding is never said
        if all(row.plain for row in rows):
            chosen = mx.argmax(logits, axis=-1)
        else:
            chosen = mx.stack([self._chosen(row, of_row) for row, of_row in zip(rows, logits, strict=True)])
        return self.model.agreed(chosen)

    @staticmethod
    def _chosen(row: Row, logits: mx.array) -> mx.array:
        logits = logits.astype(mx.float32)
        free = logits
        if row.form is not None:
            logits = mx.where(mx.array(row.form.allowed()), logits, -mx.inf)
        id = row.sampler(logits)
        if row.likeliest is not None:
            logprobs = free - mx.logsumexp(free)
            top = _top(logprobs, row.likeliest)
            row.told.append((logprobs[id], top, logprobs[top]))
        return id


def _top(logprobs: mx.array, count: int) -> mx.array:
    """The ids of the `count` largest, in order; the vocabulary is not sorted for it."""
    if not count:
        return mx.zeros((0,), mx.uint32)
    some = mx.argpartition(-logprobs, count - 1)[:count]
    return some[mx.argsort(-logprobs[some])]


def _told(found: tuple[mx.array, ...] | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    if found is None:
        return None, ()
    own, ids, logprobs = (array.tolist() for array in found)
    return own, tuple(zip(ids, logprobs, strict=True))  # type: ignore[arg-type, return-value]


def read(
    model: FastVLM, embedded: mx.array, caches: list[KVCache], between: Callable[[], None] = lambda: None
) -> mx.array:
    """Read prompts of one length, after what `caches` hold: (B, L, d) -> (B, d), the last states.

    A long one is read in chunks; `between` them others may have their turn.
    """
    chunk = max(1, PREFILL_CHUNK // embedded.shape[0])
    while embedded.shape[1] > chunk:
        model.language(embedded[:, :chunk], caches)
        mx.eval([array for cache in caches for array in cache.arrays])
        embedded = embedded[:, chunk:]
        between()
    return model.language(embedded, caches)[:, -1]


@dataclass(frozen=True, slots=True)
class Seen:
    features: Mapping[Picture, mx.array]  # (tokens, d) each
    vision_s: float
    projector_s: float  # of it
    read_s: float = 0.0  # beside it


def see(
    prompts: Sequence[Prompt],
    model: FastVLM,
    known: Features | None = None,
    one_by_one: bool = False,
) -> Seen:
    """Every picture of them once; those of one size in batches, unless `one_by_one`, which takes less memory.

    With `known`, every content once.
    """
    began = time.perf_counter()
    shown = [part for prompt in prompts for part in prompt if isinstance(part, Picture)]
    first: dict[object, Picture] = {}
    for picture in shown:
        first.setdefault(picture if known is None else picture.key, picture)
    of_size: dict[tuple[int, ...], list[Picture]] = {}
    features: dict[Picture, mx.array] = {}
    for picture in first.values():
        if known is not None and (before := known.get(picture)) is not None:
            features[picture] = before
        else:
            of_size.setdefault(picture.pixels.shape, []).append(picture)
    projector_s = 0.0
    for (_, height, width, _), pictures in of_size.items():
        count = 1 if one_by_one else max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(pictures), count):
            batch = pictures[start : start + count]
            pixels = mx.concatenate([picture.pixels for picture in batch])
            found = begun(model.vision, pixels)
            mx.eval(found)  # apart from the projector: each has its time
            since = time.perf_counter()
            encoded = model.projector(found.flatten(1, 2))
            mx.eval(encoded)
            projector_s += time.perf_counter() - since
            features |= zip(batch, encoded, strict=True)
            if known is not None:
                known.put(batch, encoded)
    if known is not None:
        features |= {picture: features[first[picture.key]] for picture in shown}
    return Seen(features, time.perf_counter() - began, projector_s)


def leave_tower(model: FastVLM) -> float:
    """All pictures are seen: the tower goes, and only then is the language model read; -> seconds."""
    began = time.perf_counter()
    model.forget_tower()
    flat: list[tuple[str, mx.array]] = tree_flatten(model.language.parameters())  # type: ignore[assignment]
    for _, array in flat:
        mx.eval(array)
        mx.clear_cache()  # of what it was made from
    return time.perf_counter() - began


def prefilled(prompt: Prompt, seen: Seen, prefill_s: float, reused: int = 0) -> Prefilled:
    """What reading a prompt took; that of its pictures stands with those who had any."""
    image_tokens = sum(part.positions for part in prompt if isinstance(part, Picture))
    vision_s, projector_s = (seen.vision_s, seen.projector_s) if image_tokens else (0.0, 0.0)
    text_tokens = positions(prompt) - image_tokens
    return Prefilled(vision_s, prefill_s, image_tokens, text_tokens, projector_s, reused, seen.read_s)
