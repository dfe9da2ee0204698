"""The one decoding loop. It tells what happens as events; everything else folds them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from .errors import PromptError
from .models.cache import KVCache
from .models.fastvlm import FastVLM
from .prompt import Picture, Prompt, positions
from .sampling import Sampler, Sampling
from .tokenizer import Detokenizer, Tokenizer

PREFILL_CHUNK = 512  # positions a step: bounds the activations of a long prompt


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt has been read. The first token follows without further work."""

    vision_s: float  # tower and projector, every picture
    prefill_s: float  # language model over all positions, first token chosen
    image_tokens: int
    text_tokens: int

    @property
    def tokens(self) -> int:
        return self.image_tokens + self.text_tokens


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    text: str  # "" while a multi-byte character is incomplete


@dataclass(frozen=True, slots=True)
class Finished:
    reason: Literal["stop", "length"]
    text: str  # what an answer cut inside a character still owes
    tokens: int  # the stop token not counted
    decode_s: float  # after the first token
    peak_bytes: int


Event = Prefilled | Token | Finished


def stream(
    model: FastVLM,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    stop_ids: Collection[int],
    context: int,
    max_tokens: int = 512,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> Iterator[Event]:
    """Read the prompt, then one token at a time until a stop id, `max_tokens` or the context's end.

    While the caller looks at one token the next is already being computed.
    """
    asked = positions(prompt)
    if asked > context:
        raise PromptError(
            f"the prompt takes {asked} positions and the model reads {context}; "
            "shorten the text, give fewer pictures or a smaller --image-size"
        )
    mx.reset_peak_memory()
    began = time.perf_counter()
    rows = model.embed(prompt)
    mx.eval(rows)
    embedded = time.perf_counter()

    sampler = Sampler(sampling, tokenizer.size)
    caches = model.language.new_caches()

    def next_token(rows: mx.array) -> mx.array:
        hidden = model.language(rows, caches)[:, -1]
        return sampler(model.language.logits(hidden)[0, : tokenizer.size])  # padded rows are never sampled

    while rows.shape[1] > PREFILL_CHUNK:
        model.language(rows[:, :PREFILL_CHUNK], caches)
        _settle(caches)
        rows = rows[:, PREFILL_CHUNK:]
    token = next_token(rows)
    mx.eval(token)
    prefilled = time.perf_counter()
    image_tokens = sum(part.positions for part in prompt if isinstance(part, Picture))
    yield Prefilled(embedded - began, prefilled - embedded, image_tokens, asked - image_tokens)

    began = time.perf_counter()
    detokenizer = Detokenizer(tokenizer)
    room = min(max_tokens, context - asked + 1)  # the last token is said, not read back
    said = 0
    reason: Literal["stop", "length"] = "length"
    while said < room:
        following = None
        if said + 1 < room:
            following = next_token(model.language.embedding(token.reshape(1, 1)))
            mx.async_eval(following)
        id = int(token)
        if id in stop_ids:
            reason = "stop"
            break
        said += 1
        yield Token(id, detokenizer.add(id))
        if following is not None:
            token = following
    yield Finished(reason, detokenizer.finish(), said, time.perf_counter() - began, mx.get_peak_memory())


def _settle(caches: list[KVCache]) -> None:
    mx.eval([array for cache in caches for array in cache.arrays])


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whole, with where its time went."""

    text: str
    ids: tuple[int, ...]
    reason: Literal["stop", "length"]
    image_tokens: int
    text_tokens: int
    vision_s: float
    prefill_s: float
    decode_s: float
    peak_bytes: int

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed: the first token belongs to the prefill."""
        return (len(self.ids) - 1) / self.decode_s if len(self.ids) > 1 and self.decode_s > 0 else 0.0


def collect(events: Iterator[Event]) -> Answer:
    """Fold a stream into an answer."""
    prefilled: Prefilled | None = None
    tokens: list[Token] = []
    for event in events:
        match event:
            case Prefilled():
                prefilled = event
            case Token():
                tokens.append(event)
            case Finished() if prefilled:
                return Answer(
                    text="".join(token.text for token in tokens) + event.text,
                    ids=tuple(token.id for token in tokens),
                    reason=event.reason,
                    image_tokens=prefilled.image_tokens,
                    text_tokens=prefilled.text_tokens,
                    vision_s=prefilled.vision_s,
                    prefill_s=prefilled.prefill_s,
                    decode_s=event.decode_s,
                    peak_bytes=event.peak_bytes,
                )
    raise ValueError("the stream ended before it finished")
