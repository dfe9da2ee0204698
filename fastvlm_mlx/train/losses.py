"""What a step is judged by: raw weights and a batch in; a loss and some measures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from ..models.cache import halves
from ..models.fastvlm import FastVLM
from . import disguise, scenes
from .batches import NOTHING, Rows, Texts
from .form import EMBEDDING_SCALE

Measures = dict[str, mx.array]


HEADS = "cells"  # where the linear readings of cells are kept while the encoder is trained
SYMBOLS = "symbols"  # where the rows are kept that stand for cells while there is no encoder
EARLY = "stages.2.blocks"  # one position for 16 px: letters are told apart here first
_PLACES = ("row", "column")  # which every cell tells
EARLY_NAMES = ("shape", "colour", "glyphs")


def cell_heads(features: int, early: int, width: int, key: mx.array) -> dict[str, mx.array]:
    """Fresh readings of every property from tokens and of some from the third stage; and fresh rows, as wide
    as a language model, for every value of every property."""
    sizes = {
        f"{HEADS}.{name}": (slots * classes, features) for name, (slots, classes) in scenes.HEADS.items()
    }
    sizes |= {f"{HEADS}.early.{name}": (scenes.HEADS[name][1] - 1, early) for name in EARLY_NAMES}
    told = {**scenes.HEADS, disguise.HEAD: disguise.SLOTS}
    rows = {f"{SYMBOLS}.{name}": (slots * classes, width) for name, (slots, classes) in told.items()}
    keys = iter(mx.random.split(key, len(sizes) + len(rows)))
    drawn = {f"{name}.weight": 0.01 * mx.random.normal(size, key=next(keys)) for name, size in sizes.items()}
    drawn |= {
        f"{name}.weight": EMBEDDING_SCALE * mx.random.normal(size, key=next(keys))
        for name, size in rows.items()
    }
    return drawn | {f"{name}.bias": mx.zeros(size[:1]) for name, size in sizes.items()}


def cells(
    outputs: Mapping[str, mx.array], raw: Mapping[str, mx.array], targets: Mapping[str, mx.array]
) -> tuple[mx.array, Measures]:
    """Each token says what its cell shows. The third stage does so early, the way from there to the letters
    being short: any of its positions in a slot may tell. Measures: what tokens get right of the shown."""
    (*_, features), early = outputs.values(), outputs[EARLY]
    total = mx.zeros(())
    measures: Measures = {}
    for name, target in targets.items():  # (P, places, slots)
        logits = _read(raw, f"{HEADS}.{name}", features).reshape(*target.shape, -1)
        total = total + _balanced(logits, target)
        shown = target > 0
        right = (logits.argmax(-1) == target) & shown
        measures[name] = right.sum() / mx.maximum(shown.sum(), 1)
        if name in EARLY_NAMES:
            told = _anywhere(
                _read(raw, f"{HEADS}.early.{name}", early), features.shape[1:3], target.shape[-1]
            )
            total = total + _balanced(told.reshape(*target.shape, -1), target)
    return total, measures


def symbols(raw: Mapping[str, mx.array], targets: Mapping[str, mx.array]) -> mx.array:
    """(P · cells, width): in place of what a projector gives, the sum of a row for all that a cell shows"""
    heads = {**scenes.HEADS, disguise.HEAD: disguise.SLOTS} if disguise.HEAD in targets else scenes.HEADS
    rows = []
    for name, (slots, classes) in heads.items():
        values = targets[name].flatten(0, 1)
        each = mx.take(raw[f"{SYMBOLS}.{name}.weight"], values + classes * mx.arange(slots), axis=0)
        rows.append((each * (values > 0)[..., None]).sum(1))
    return sum(rows, start=mx.zeros(()))


def projector(
    model: FastVLM, features: mx.array, raw: Mapping[str, mx.array], targets: Mapping[str, mx.array]
) -> tuple[mx.array, Measures]:
    """How far what the projector says is from the symbols for those cells, as a share of their variance: of
    cells that show something, and of empty ones, which are most and must not be all that counts."""
    wanted = mx.stop_gradient(symbols(raw, targets))
    error = ((model.projector(features.flatten(0, 2)) - wanted) ** 2).mean(-1)
    contents = [target for name, target in targets.items() if name not in _PLACES]
    shown = (mx.concatenate(contents, axis=-1) > 0).any(-1).flatten()
    shares = []
    for kind in (shown, ~shown):
        share = kind / mx.maximum(kind.sum(), 1)
        middle = (share[:, None] * wanted).sum(0)
        variance = (share[:, None] * (wanted - middle) ** 2).sum(0).mean()
        shares.append((share * error).sum() / mx.maximum(variance, 1e-6))
    return shares[0] + shares[1], {"explained": 1 - shares[0], "empty": 1 - shares[1]}


def _read(heads: Mapping[str, mx.array], name: str, x: mx.array) -> mx.array:
    return x @ heads[f"{name}.weight"].T + heads[f"{name}.bias"]


def _anywhere(logits: mx.array, cells: tuple[int, ...], slots: int) -> mx.array:
    """A class told at one place of a slot is told of the slot, the first class being that none is:
    (P, H, W, classes - 1) -> (P, h, w, slots, classes)"""
    (pictures, height, width, classes), (down, across) = logits.shape, cells
    parts = logits.reshape(pictures, down, height // down, across, slots, width // across // slots, classes)
    told = mx.logsumexp(parts, axis=(2, 5))
    return mx.concatenate([mx.zeros((*told.shape[:-1], 1)), told], axis=-1)


def _balanced(logits: mx.array, target: mx.array) -> mx.array:
    """What is shown weighs as much as all that is empty: most slots are, and saying so must not be enough."""
    losses = nn.losses.cross_entropy(logits, mx.maximum(target, 0))
    means = [(losses * kind).sum() / mx.maximum(kind.sum(), 1) for kind in (target > 0, target == 0)]
    return means[0] + means[1]


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
        return halves(both)

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
