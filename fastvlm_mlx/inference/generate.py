"""The one decoding loop. It tells what happens as events; everything else folds them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import mlx.core as mx

from ..errors import PromptError
from ..inputs.prompt import Prompt, positions
from ..inputs.tokenizer import Tokenizer
from ..models.fastvlm import FastVLM
from .caches import Features, Prefix
from .decoding import (
    Answering,
    Batch,
    Drafter,
    Event,
    Finished,
    Prefilled,
    Token,
    encode_images,
    prefilled_event,
    release_tower,
)
from .sampling import Sampling


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
    drafter: Drafter | None = None,
    low_memory: bool = False,
) -> Iterator[Event]:
    """Read the prompt, then one token at a time until a stop id, `max_tokens` or the context's end.

    What `prefix` and the prompt begin with in common is not read again; afterwards `prefix` knows the prompt
    and the answer as far as it came. Pictures that `features` knows are not encoded again. What a `drafter`
    proposes is checked several tokens at a time, if the answer is greedy. With `low_memory` the pictures are
    encoded one by one, and then the tower is freed.
    """
    check_context(context, [prompt])
    mx.reset_peak_memory()
    room = answer_limit(prompt, context, max_tokens)
    reused, rest = (0, prompt) if prefix is None else prefix.resume(prompt)
    caches = model.language.new_caches() if prefix is None else prefix.caches
    try:
        seen = encode_images([rest], model, features, one_by_one=low_memory)
        if low_memory:
            seen = replace(seen, read_s=release_tower(model))
        batch = Batch(model, tokenizer, stop_ids)
        row = batch.answer(sampling, room, drafter=drafter)
        prefill_s = batch.admit([row], [rest], seen.features, caches)
        yield prefilled_event(rest, seen, prefill_s, reused)
        for _, event in _decode(batch, [row]):
            if prefix is not None and isinstance(event, Token):
                prefix.append(event.id)
            yield event
    except Exception:
        if prefix is not None:
            prefix.forget()  # its caches may hold what could not be computed
        raise


def answer_batch(
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

    Those of equal length are read side by side, and all are answered so; a picture that several hold is
    encoded once.
    An answer's times and peak are those of all that went with it.
    """
    told: list[list[Event]] = [[] for _ in prompts]
    for index, event in stream_batch(
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


def stream_batch(
    model: FastVLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    stop_ids: Collection[int],
    context: int,
    max_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> Iterator[tuple[int, Event]]:
    """What happens to which of several prompts. They are read side by side if equally long."""
    check_context(context, prompts)
    mx.reset_peak_memory()
    seen = encode_images(prompts, model)
    alike: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        alike.setdefault(positions(prompt), []).append(index)
    batch = Batch(model, tokenizer, stop_ids)
    index_of: dict[Answering, int] = {}
    for indices in alike.values():
        group = [prompts[index] for index in indices]
        rows = [batch.answer(sampling, answer_limit(prompt, context, max_tokens)) for prompt in group]
        index_of |= zip(rows, indices, strict=True)
        prefill_s = batch.admit(rows, group, seen.features, model.language.new_caches())
        for index, prompt in zip(indices, group, strict=True):
            yield index, prefilled_event(prompt, seen, prefill_s)
    for row, event in _decode(batch, list(index_of)):
        yield index_of[row], event


def _decode(batch: Batch, rows: Sequence[Answering]) -> Iterator[tuple[Answering, Token | Finished]]:
    for row in rows:
        if not row.max_tokens:
            yield row, batch.finish(row, "length")
    while told := batch.step():
        yield from told


def check_context(context: int, prompts: Sequence[Prompt]) -> None:
    """A prompt that the model cannot read whole is not cut: it would be another question."""
    asked = max(map(positions, prompts), default=0)
    if asked > context:
        raise PromptError(
            f"the prompt takes {asked} positions and the model reads {context}; "
            "shorten the text, give fewer pictures or a smaller --image-size"
        )


def answer_limit(prompt: Prompt, context: int, max_tokens: int) -> int:
    """Tokens that an answer may have."""
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
    cached_tokens: int = 0
    drafted: int = 0  # tokens that were proposed, and how many of them were right
    accepted: int = 0
    read_s: float = 0.0  # before, with low_memory: loading the language model

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
                    cached_tokens=prefilled.cached_tokens,
                    drafted=event.drafted,
                    accepted=event.accepted,
                    read_s=prefilled.read_s,
                )
    raise ValueError("the stream ended before it finished")
