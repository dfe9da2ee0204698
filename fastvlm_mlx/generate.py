"""The one decoding loop. It tells what happens as events; everything else folds them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import mlx.core as mx

from .errors import PromptError
from .memory import Features, Prefix
from .models.cache import KVCache
from .models.fastvlm import FastVLM
from .prompt import Picture, Prompt, positions
from .sampling import Sampler, Sampling
from .tokenizer import Detokenizer, Tokenizer

PREFILL_CHUNK = 512  # positions a step, of all prompts together: bounds their activations
PIXELS_AT_ONCE = 4 * 1024 * 1024  # bounds the tower's activations


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt has been read. The first token follows without further work."""

    vision_s: float  # tower and projector, every picture
    prefill_s: float  # language model over all positions, first token chosen
    image_tokens: int
    text_tokens: int
    projector_s: float = 0.0  # of vision_s
    reused_tokens: int = 0  # known from before, beside those two

    @property
    def tokens(self) -> int:
        return self.image_tokens + self.text_tokens + self.reused_tokens


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
    prefix: Prefix | None = None,
    features: Features | None = None,
) -> Iterator[Event]:
    """Read the prompt, then one token at a time until a stop id, `max_tokens` or the context's end.

    What `prefix` and the prompt begin with in common is not read again; afterwards `prefix` knows the prompt
    and the answer as far as it came. Pictures that `features` knows are not encoded again.
    """
    _refuse_beyond(context, [prompt])
    mx.reset_peak_memory()
    room = _room(prompt, context, max_tokens)
    reused, rest = (0, prompt) if prefix is None else prefix.resume(prompt)
    caches = model.language.new_caches() if prefix is None else prefix.caches
    seen = _see([rest], model, features)
    for _, event in _side_by_side(model, tokenizer, [rest], seen, stop_ids, room, sampling, caches):
        if prefix is not None and isinstance(event, Token):
            prefix.said(event.id)
        yield replace(event, reused_tokens=reused) if isinstance(event, Prefilled) else event


def answers(
    model: FastVLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    stop_ids: Collection[int],
    context: int,
    max_tokens: int = 512,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> list[Answer]:
    """Several prompts at once, each answered as if it were alone.

    Those of equal length go side by side, without padding; a picture that several hold is encoded once.
    An answer's times and peak are those of all that went with it.
    """
    told: list[list[Event]] = [[] for _ in prompts]
    for index, event in streams(
        model,
        tokenizer,
        prompts,
        stop_ids=stop_ids,
        context=context,
        max_tokens=max_tokens,
        sampling=sampling,
    ):
        told[index].append(event)
    return [collect(iter(events)) for events in told]


def streams(
    model: FastVLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    stop_ids: Collection[int],
    context: int,
    max_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> Iterator[tuple[int, Event]]:
    """What happens to which of several prompts; those of equal length go side by side."""
    _refuse_beyond(context, prompts)
    mx.reset_peak_memory()
    seen = _see(prompts, model)
    alike: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        alike.setdefault(positions(prompt), []).append(index)
    for indices in alike.values():
        group = [prompts[index] for index in indices]
        room = _room(group[0], context, max_tokens)
        caches = model.language.new_caches()
        for row, event in _side_by_side(model, tokenizer, group, seen, stop_ids, room, sampling, caches):
            yield indices[row], event


def _side_by_side(
    model: FastVLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    seen: _Seen,
    stop_ids: Collection[int],
    room: int,
    sampling: Sampling,
    caches: list[KVCache],
) -> Iterator[tuple[int, Event]]:
    """The loop: what happens to which of the prompts, all of one length. Who has finished leaves the batch.

    While the caller looks at one token the next is already being computed.
    """
    began = time.perf_counter()
    samplers = [Sampler(sampling, tokenizer.size) for _ in prompts]

    def next_tokens(rows: mx.array) -> mx.array:
        hidden = model.language(rows, caches)[:, -1]
        logits = model.language.logits(hidden)[:, : tokenizer.size]  # padded rows are never sampled
        return mx.stack([sample(row) for sample, row in zip(samplers, logits, strict=True)])

    rows = mx.concatenate([model.embed(prompt, seen.features) for prompt in prompts])
    chunk = max(1, PREFILL_CHUNK // len(prompts))
    while rows.shape[1] > chunk:
        model.language(rows[:, :chunk], caches)
        mx.eval([array for cache in caches for array in cache.arrays])
        rows = rows[:, chunk:]
    tokens = next_tokens(rows)
    mx.eval(tokens)
    prefill_s = time.perf_counter() - began
    for row, prompt in enumerate(prompts):
        image_tokens = sum(part.positions for part in prompt if isinstance(part, Picture))
        text_tokens = positions(prompt) - image_tokens
        yield row, Prefilled(seen.vision_s, prefill_s, image_tokens, text_tokens, seen.projector_s)

    began = time.perf_counter()
    detokenizers = [Detokenizer(tokenizer) for _ in prompts]

    def finished(row: int, reason: Literal["stop", "length"], said: int) -> tuple[int, Finished]:
        owed, decode_s = detokenizers[row].finish(), time.perf_counter() - began
        return row, Finished(reason, owed, said, decode_s, mx.get_peak_memory())

    live = list(range(len(prompts)))  # the prompt of each row of the batch
    for said in range(room):
        following = None
        if said + 1 < room:
            following = next_tokens(model.language.embedding(tokens[:, None]))
            mx.async_eval(following)
        ids: list[int] = tokens.tolist()  # type: ignore[assignment]
        going = []
        for place, id in enumerate(ids):
            if id in stop_ids:
                yield finished(live[place], "stop", said)
            else:
                yield live[place], Token(id, detokenizers[live[place]].add(id))
                going.append(place)
        if following is None or not going:
            live = [live[place] for place in going]
            break
        if len(going) < len(live):
            live, samplers = [live[place] for place in going], [samplers[place] for place in going]
            following = following[mx.array(going)]
            for cache in caches:
                cache.keep(going)
        tokens = following
    for row in live:
        yield finished(row, "length", room)


@dataclass(frozen=True, slots=True)
class _Seen:
    features: Mapping[Picture, mx.array]  # (tokens, d) each
    vision_s: float
    projector_s: float


def _see(prompts: Sequence[Prompt], model: FastVLM, known: Features | None = None) -> _Seen:
    """Every picture once; those of one size in batches. With `known`, every content once."""
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
        count = max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(pictures), count):
            batch = pictures[start : start + count]
            found = model.vision(mx.concatenate([picture.pixels for picture in batch]))
            mx.eval(found)  # apart from the projector, so that each has its time
            since = time.perf_counter()
            encoded = model.projector(found.flatten(1, 2))
            mx.eval(encoded)
            projector_s += time.perf_counter() - since
            features |= zip(batch, encoded, strict=True)
            if known is not None:
                known.put(batch, encoded)
    if known is not None:
        features |= {picture: features[first[picture.key]] for picture in shown}
    return _Seen(features, time.perf_counter() - began, projector_s)


def _refuse_beyond(context: int, prompts: Sequence[Prompt]) -> None:
    asked = max(map(positions, prompts), default=0)
    if asked > context:
        raise PromptError(
            f"the prompt takes {asked} positions and the model reads {context}; "
            "shorten the text, give fewer pictures or a smaller --image-size"
        )


def _room(prompt: Prompt, context: int, max_tokens: int) -> int:
    return min(max_tokens, context - positions(prompt) + 1)  # the last token is said, not read back


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
    reused_tokens: int = 0

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
                    reused_tokens=prefilled.reused_tokens,
                )
    raise ValueError("the stream ended before it finished")
