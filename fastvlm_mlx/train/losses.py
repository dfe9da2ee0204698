"""The loss of a batch of conversations: cross-entropy of the model's own words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from ..models.fastvlm import FastVLM
from ..models.kv_cache import split_kv
from .batches import NOTHING, Batch, Rows, Texts

Measures = dict[str, mx.array]


def pixels(batch: Batch) -> mx.array:
    return mx.array(batch.pixels).astype(mx.float32) / 255


def conversations(model: FastVLM, batch: Batch) -> tuple[mx.array, Measures]:
    """`answers` about a batch's pictures, which the model encodes."""
    pictures = None
    if batch.pixels.size:
        *_, (_, features) = model.vision.trace(pixels(batch))
        pictures = model.projector(features.flatten(0, 2))
    return answers(model, pictures, batch.texts)


class _Shared:
    """In place of a KV cache: first the heads are read, then every tail sees the head that it follows."""

    def __init__(self, head_of: mx.array):
        self.position = 0
        self._head_of = head_of
        self._heads: mx.array | None = None

    def extend(self, both: mx.array) -> tuple[mx.array, mx.array]:
        if self._heads is None:
            self._heads, self.position = both, both.shape[3]
        else:
            both = mx.concatenate([mx.take(self._heads, self._head_of, axis=1), both], axis=3)
        return split_kv(both)

    def mask(self, length: int) -> Literal["causal"]:
        return "causal"


def answers(model: FastVLM, pictures: mx.array | None, texts: Sequence[Texts]) -> tuple[mx.array, Measures]:
    """Cross-entropy of the model's own words, `pictures` being all their rows; a long answer weighs as the
    root of its length."""
    total, weight = mx.zeros(()), mx.zeros(())
    wrong_words: list[mx.array] = []
    right_answers: list[mx.array] = []
    for group in texts:
        logits = _logits(model, pictures, group)
        targets, owners = mx.array(group.targets), mx.array(group.owners)
        none = mx.zeros(len(group.head_of))
        weights = mx.rsqrt(none.at[owners].add(1))[owners]
        losses = nn.losses.cross_entropy(logits, targets)
        total, weight = total + (losses * weights).sum(), weight + weights.sum()
        wrong = (logits.argmax(-1) != targets).astype(mx.float32)
        wrong_words.append(wrong)
        right_answers.append(none.at[owners].add(wrong) == 0)
    measures = {
        "tokens": 1 - mx.concatenate(wrong_words).mean(),
        "answers": mx.concatenate(right_answers).mean(),
    }
    return total / weight, measures


def _logits(model: FastVLM, pictures: mx.array | None, texts: Texts) -> mx.array:
    """(T, vocabulary), of the positions whose next id is the model's"""
    caches = [_Shared(mx.array(texts.head_of)) for _ in model.language.layers]
    if texts.heads:
        model.language(_embedded(model, pictures, texts.heads), caches)  # type: ignore[arg-type]
    hidden = model.language(_embedded(model, pictures, texts.tails), caches)  # type: ignore[arg-type]
    said = mx.take(hidden.flatten(0, 1), mx.array(texts.positions), axis=0)
    return model.language.logits(said).astype(mx.float32)


def _embedded(model: FastVLM, pictures: mx.array | None, rows: Rows) -> mx.array:
    embedded = model.language.embedding(mx.array(rows.ids))
    if pictures is None:
        return embedded
    places = mx.array(rows.pictures)
    shown = mx.take(pictures, mx.maximum(places, 0), axis=0)
    return mx.where((places != NOTHING)[..., None], shown, embedded)
