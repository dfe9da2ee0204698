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
from ..kernels import run_parallel
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
    cached_tokens: int = 0  # known from before, beside those two
    read_s: float = 0.0  # before, with low_memory: loading the language model

    @property
    def tokens(self) -> int:
        return self.image_tokens + self.text_tokens + self.cached_tokens


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    text: str  # "" while a multi-byte character is incomplete
    logprob: float | None = None  # where it was asked for, before temperature and filters
    top_logprobs: tuple[tuple[int, float], ...] = ()  # ids and their logprobs


@dataclass(frozen=True, slots=True)
class Finished:
    reason: Literal["stop", "length"]
    text: str  # what an answer cut inside a character still owes
    tokens: int  # the stop token not counted
    decode_s: float  # after the first token
    peak_bytes: int
    drafted: int = 0  # tokens that a drafter proposed
    accepted: int = 0  # those that were said


Event = Prefilled | Token | Finished


class Constraint(Protocol):
    """What an answer must look like: which ids may come next, told what came."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """(vocabulary,)"""

    def advance(self, token: int) -> None: ...


class Drafter(Protocol):
    """Proposes what may come next, to be checked by the model in one go."""

    def propose(self, said: Sequence[int], most: int) -> Sequence[int]:
        """At most so many ids after all that was said."""


@dataclass(slots=True, eq=False)
class Answering:
    """One answer in the making."""

    sampler: Sampler
    detokenizer: Detokenizer
    max_tokens: int  # tokens at most
    top_logprobs: int | None = None  # of how many ids to tell the logprobs; None tells none
    constraint: Constraint | None = None
    drafter: Drafter | None = None  # of use to one who answers greedily and alone
    generated: int = 0
    done: bool = False  # leaves before the next step; who loses interest may set it
    started: float = 0.0
    pending_logprobs: list[tuple[mx.array, ...]] = field(
        default_factory=list
    )  # logprobs of tokens still to be looked at
    ids: list[int] = field(default_factory=list)  # what was said, for the drafter
    drafted: int = 0
    accepted: int = 0

    @property
    def is_greedy(self) -> bool:
        """Nothing but the likeliest token is wanted."""
        return self.sampler.greedy and self.constraint is None and self.top_logprobs is None


class Batch:
    """While the caller looks at one token of each answer, the next ones are already being computed."""

    def __init__(self, model: FastVLM, tokenizer: Tokenizer, stop_ids: Collection[int]):
        self.answering: list[Answering] = []
        self.model, self._tokenizer, self._stop_ids = model, tokenizer, stop_ids
        self._caches: list[KVCache] = []
        self._last = mx.zeros((0,), mx.uint32)  # what was looked at last
        self._next: mx.array | None = None  # chosen after that, if it has been

    def answer(
        self,
        sampling: Sampling,
        room: int,
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
        drafter: Drafter | None = None,
    ) -> Answering:
        sampler = Sampler(sampling, self._tokenizer.size)
        return Answering(sampler, Detokenizer(self._tokenizer), room, top_logprobs, constraint, drafter)

    def admit(
        self,
        rows: Sequence[Answering],
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
        self._start(rows, caches, prefill(self.model, embedded, caches, between))
        return time.perf_counter() - began

    def _start(self, rows: Sequence[Answering], caches: list[KVCache], hidden: mx.array) -> None:
        self._drop_finished()
        first = self._choose(rows, hidden)
        mx.eval(first)
        if not self.answering:
            self.answering, self._caches, self._last, self._next = list(rows), caches, first, first
        else:
            running = self._next_tokens() if self._next is None else self._next
            self._last = mx.concatenate([self._last, first])
            self._next = mx.concatenate([running, first])
            self.answering += rows
            for held, new in zip(self._caches, caches, strict=True):
                held.join(new)
        began = time.perf_counter()
        for row in rows:
            row.started, row.done = began, row.max_tokens == 0

    def clear(self) -> None:
        """Drop all answers."""
        self.answering, self._caches = [], []
        self._last, self._next = mx.zeros((0,), mx.uint32), None

    def step(self) -> list[tuple[Answering, Token | Finished]]:
        """A token of each answer, or several where they were guessed; with its last, that it is finished."""
        self._drop_finished()
        if not self.answering:
            return []
        if len(self.answering) == 1 and self.answering[0].is_greedy and self.answering[0].drafter:
            return self._step_speculative(self.answering[0], self.answering[0].drafter)
        self._last = self._next_tokens() if self._next is None else self._next
        self._next = None
        if any(row.generated + 1 < row.max_tokens for row in self.answering) and all(
            row.constraint is None for row in self.answering
        ):
            self._next = self._next_tokens()
            mx.async_eval(self._next)
        ids: list[int] = self._last.tolist()  # type: ignore[assignment]
        return [event for row, id in zip(self.answering, ids, strict=True) for event in self._emit(row, id)]

    def _step_speculative(self, row: Answering, drafter: Drafter) -> list[tuple[Answering, Token | Finished]]:
        """The next token, and with it as many as were guessed rightly: all are read in one go."""
        first = self._next_tokens() if self._next is None else self._next
        ids: list[int] = first.tolist()  # type: ignore[assignment]
        events = self._emit(row, ids[0])
        self._last, self._next = first, None
        if row.done:
            return events
        guess = list(drafter.propose(row.ids, row.max_tokens - row.generated))
        rows = self.model.language.embedding(mx.array([[ids[0], *guess]]))
        hidden = self.model.language(rows, self._caches)[0]
        chosen: list[int] = self._choose([row], hidden).tolist()  # type: ignore[assignment]
        right = next((n for n, id in enumerate(guess) if id != chosen[n]), len(guess))
        row.drafted, row.accepted = row.drafted + len(guess), row.accepted + right
        for cache in self._caches:
            cache.trim(cache.offset - (len(guess) - right))
        for id in guess[:right]:
            if not row.done:
                events += self._emit(row, id)
        self._next = mx.array(chosen[right : right + 1])
        return events

    def _emit(self, row: Answering, id: int) -> list[tuple[Answering, Token | Finished]]:
        """What the next token of an answer means for it."""
        told = row.pending_logprobs.pop(0) if row.pending_logprobs else None
        if id in self._stop_ids:
            return [(row, self.finish(row, "stop"))]
        row.generated += 1
        if row.constraint is not None:
            row.constraint.advance(id)
        if row.drafter is not None:
            row.ids.append(id)
        token = Token(id, row.detokenizer.add(id), *_read_logprobs(told))
        return [
            (row, token),
            *([(row, self.finish(row, "length"))] if row.generated == row.max_tokens else []),
        ]

    def finish(self, row: Answering, reason: Literal["stop", "length"]) -> Finished:
        """Let an answer end here."""
        row.done = True
        decode_s = time.perf_counter() - row.started
        owed, peak = row.detokenizer.finish(), mx.get_peak_memory()
        return Finished(reason, owed, row.generated, decode_s, peak, row.drafted, row.accepted)

    def caches_of(self, row: Answering) -> list[KVCache]:
        """What was read for an answer, and the answer itself; until the next step."""
        place = self.answering.index(row)
        own = [cache.row(place) for cache in self._caches]
        mx.eval([array for cache in own for array in cache.arrays])  # or the next step would copy the batch
        return own

    def _drop_finished(self) -> None:
        """Who has finished leaves."""
        going = [place for place, row in enumerate(self.answering) if not row.done]
        if len(going) == len(self.answering):
            return
        self.answering = [self.answering[place] for place in going]
        if not going:
            self._caches, self._next = [], None
            return
        chosen = mx.array(going)
        self._last = self._last[chosen]
        self._next = None if self._next is None else self._next[chosen]
        for cache in self._caches:
            cache.keep(going)

    def _next_tokens(self) -> mx.array:
        rows = self.model.language.embedding(self._last[:, None])
        return self._choose(self.answering, self.model.language(rows, self._caches)[:, -1])

    def _choose(self, rows: Sequence[Answering], hidden: mx.array) -> mx.array:
        """(B, d) -> (B,); of one row also at several positions"""
        logits = self.model.language.logits(hidden)[:, : self._tokenizer.size]  # padding is never said
        if all(row.is_greedy for row in rows):
            chosen = mx.argmax(logits, axis=-1)
        else:
            chosen = mx.stack([self._chosen(row, of_row) for row, of_row in zip(rows, logits, strict=True)])
        return self.model.synchronize(chosen)

    @staticmethod
    def _chosen(row: Answering, logits: mx.array) -> mx.array:
        logits = logits.astype(mx.float32)
        free = logits
        if row.constraint is not None:
            logits = mx.where(mx.array(row.constraint.allowed()), logits, -mx.inf)
        id = row.sampler(logits)
        if row.top_logprobs is not None:
            logprobs = free - mx.logsumexp(free)
            top = _top(logprobs, row.top_logprobs)
            row.pending_logprobs.append((logprobs[id], top, logprobs[top]))
        return id


def _top(logprobs: mx.array, count: int) -> mx.array:
    """The ids of the `count` largest, in order; the vocabulary is not sorted for it."""
    if not count:
        return mx.zeros((0,), mx.uint32)
    some = mx.argpartition(-logprobs, count - 1)[:count]
    return some[mx.argsort(-logprobs[some])]


def _read_logprobs(found: tuple[mx.array, ...] | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    if found is None:
        return None, ()
    own, ids, logprobs = (array.tolist() for array in found)
    return own, tuple(zip(ids, logprobs, strict=True))  # type: ignore[arg-type, return-value]


def prefill(
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
class ImageFeatures:
    features: Mapping[Picture, mx.array]  # (tokens, d) each
    vision_s: float
    projector_s: float  # of it
    read_s: float = 0.0  # beside it


def encode_images(
    prompts: Sequence[Prompt],
    model: FastVLM,
    cache: Features | None = None,
    one_by_one: bool = False,
) -> ImageFeatures:
    """Every picture of them once; those of one size in batches, unless `one_by_one`, which takes less memory.

    With `known`, every content once.
    """
    began = time.perf_counter()
    shown = [part for prompt in prompts for part in prompt if isinstance(part, Picture)]
    first: dict[object, Picture] = {}
    for picture in shown:
        first.setdefault(picture if cache is None else picture.key, picture)
    of_size: dict[tuple[int, ...], list[Picture]] = {}
    features: dict[Picture, mx.array] = {}
    for picture in first.values():
        if cache is not None and (before := cache.get(picture)) is not None:
            features[picture] = before
        else:
            of_size.setdefault(picture.pixels.shape, []).append(picture)
    projector_s = 0.0
    for (_, height, width, _), pictures in of_size.items():
        count = 1 if one_by_one else max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(pictures), count):
            batch = pictures[start : start + count]
            pixels = mx.concatenate([picture.pixels for picture in batch])
            found = run_parallel(model.vision, pixels)
            mx.eval(found)  # apart from the projector: each has its time
            since = time.perf_counter()
            encoded = model.projector(found.flatten(1, 2))
            mx.eval(encoded)
            projector_s += time.perf_counter() - since
            features |= zip(batch, encoded, strict=True)
            if cache is not None:
                cache.put(batch, encoded)
    if cache is not None:
        features |= {picture: features[first[picture.key]] for picture in shown}
    return ImageFeatures(features, time.perf_counter() - began, projector_s)


def release_tower(model: FastVLM) -> float:
    """All pictures are seen: the tower goes, and only then is the language model read; -> seconds."""
    began = time.perf_counter()
    model.release_tower()
    flat: list[tuple[str, mx.array]] = tree_flatten(model.language.parameters())  # type: ignore[assignment]
    for _, array in flat:
        mx.eval(array)
        mx.clear_cache()  # of what it was made from
    return time.perf_counter() - began


def prefilled_event(prompt: Prompt, seen: ImageFeatures, prefill_s: float, reused: int = 0) -> Prefilled:
    """What reading a prompt took; that of its pictures stands with those who had any."""
    image_tokens = sum(part.positions for part in prompt if isinstance(part, Picture))
    vision_s, projector_s = (seen.vision_s, seen.projector_s) if image_tokens else (0.0, 0.0)
    text_tokens = positions(prompt) - image_tokens
    return Prefilled(vision_s, prefill_s, image_tokens, text_tokens, projector_s, reused, seen.read_s)
