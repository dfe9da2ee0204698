"""What an answer may go on with: checked by the model several tokens at a time, never believed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import mlx.core as mx

from ..inputs.prompt import Prompt, Text
from ..models.fastvlm import FastVLM
from .decoding import encode_images, prefill

_NGRAM_TOKENS = 10  # tokens that a repetition is followed for
_DRAFT_TOKENS = 4  # tokens that a draft is made of
_LONGEST, _SHORTEST = 3, 2  # ids that have to be the same for what followed them to be proposed
_PICTURE = -1


class NgramDrafter:
    """What followed the last time that the prompt or the answer said these words: lists, tables, quotes."""

    def __init__(self, prompt: Prompt) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where it went on after some ids, the last time
        for part in prompt:
            self._add(part.ids if isinstance(part, Text) else [_PICTURE])
        self._asked = len(self._ids)

    def propose(self, said: Sequence[int], most: int) -> Sequence[int]:
        self._add(said[len(self._ids) - self._asked :])
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            if start := self._after.get(tuple(self._ids[-length:])):
                found = self._ids[start : start + min(_NGRAM_TOKENS, most)]
                return found[: found.index(_PICTURE)] if _PICTURE in found else found
        return ()

    def _add(self, ids: Sequence[int]) -> None:
        for id in ids:
            end = len(self._ids)
            for length in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._after[tuple(self._ids[end - length :])] = end
            self._ids.append(id)


class ModelDrafter:
    """What a smaller model would say. It reads the prompt, pictures too, when it is first asked."""

    def __init__(self, model: FastVLM, prompt: Prompt, vocabulary: int, stop_ids: Collection[int]) -> None:
        self._model, self._prompt = model, prompt
        self._vocabulary, self._stop_ids = vocabulary, stop_ids
        self._caches = model.language.new_caches()
        self._cached: list[int] = []  # of the answer, what the caches hold

    def propose(self, said: Sequence[int], most: int) -> Sequence[int]:
        if not self._caches[0].offset:
            seen = encode_images([self._prompt], self._model).features
            prefill(self._model, self._model.embed(self._prompt, seen), self._caches)
        pairs = enumerate(zip(self._cached, said[:-1], strict=False))  # the last is read in any case
        same = next((n for n, (a, b) in pairs if a != b), min(len(self._cached), len(said) - 1))
        for cache in self._caches:
            cache.trim(cache.offset - (len(self._cached) - same))
        coming, drafted = list(said[same:]), list[int]()
        self._cached = list(said[:same])
        for _ in range(min(_DRAFT_TOKENS, most)):
            rows = self._model.language.embedding(mx.array([coming]))
            hidden = self._model.language(rows, self._caches)[:, -1]
            self._cached += coming
            logits = self._model.language.logits(hidden)[:, : self._vocabulary]
            coming = mx.argmax(logits, axis=-1).tolist()  # type: ignore[assignment]
            if coming[0] in self._stop_ids:
                break
            drafted += coming
        return drafted


class CombinedDrafter:
    """A repetition if there is one, else a draft."""

    def __init__(self, repetitions: NgramDrafter, draft: ModelDrafter) -> None:
        self._repetitions, self._draft = repetitions, draft

    def propose(self, said: Sequence[int], most: int) -> Sequence[int]:
        return self._repetitions.propose(said, most) or self._draft.propose(said, most)
