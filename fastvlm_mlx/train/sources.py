"""Where batches come from: generated scenes. The same seed, step and share always give the same batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..config import IMAGE_MARK, STRIDE
from ..prompt import render
from ..tokenizer import Tokenizer
from . import composing, drawing, questions, scenes
from .batches import Batch, Sample, collate, conversation
from .recipe import Stage

_ATTEMPTS = 16  # scenes looked at for one with letters


@dataclass(frozen=True)
class Share:
    """One of several processes that divide every batch between them."""

    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class Scenes:
    seed: int
    tokenizer_folder: Path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.tokenizer_folder)

    def batch(self, stage: Stage, number: int, step: int, share: Share) -> Batch:
        """`number` is the stage's place in the recipe: no two stages see the same pictures."""
        lines = stage.view == "lines" or (stage.view == "both" and step % 2 == 1)
        count = stage.batch * (scenes.GRID if lines else 1)  # as many pixels, either way
        mine = [step * count + index for index in range(share.rank, count, share.ranks)]
        seed = self.seed * 1000 + number
        if stage.kind == "cells":
            return _cells([_view(lines, seed, index) for index in mine])
        shown = [composing.scene(seed, index, "train") for index in mine]
        pixels = np.stack([drawing.draw(scene) for scene in shown])
        tokens = (pixels.shape[1] // STRIDE) * (pixels.shape[2] // STRIDE)
        rng = np.random.default_rng([seed, step, share.rank])
        samples = [
            self._sample(question, picture, tokens)
            for picture, scene in enumerate(shown)
            for question in chosen(questions.ask(scene, rng), stage, rng)
        ]
        return collate(pixels, samples, tokens)

    def _sample(self, question: questions.Question, picture: int, tokens: int) -> Sample:
        asked = render(question.text, 1)
        return conversation(
            [(asked, False), (f"{question.answer}<|im_end|>", True)],
            [picture],
            tokens,
            self.tokenizer.encode,
            IMAGE_MARK,
        )


Rows = range  # of a scene's cells


def _view(lines: bool, seed: int, index: int) -> tuple[scenes.Scene, Rows]:
    """A scene and what to show of it: all, or a row of cells with letters, from the first of several that
    has any. Letters are the hardest to learn, and a row costs a quarter."""
    if not lines:
        return composing.scene(seed, index, "train"), range(scenes.GRID)
    for attempt in range(_ATTEMPTS):
        scene = composing.scene(seed, index * _ATTEMPTS + attempt, "train")
        lettered = np.flatnonzero((scenes.cells(scene).glyphs > 0).any((1, 2)))
        if len(lettered):
            row = int(lettered[index % len(lettered)])
            return scene, range(row, row + 1)
    return scene, range(1)


def _cells(views: list[tuple[scenes.Scene, Rows]]) -> Batch:
    pixels = [
        drawing.draw(scene)[rows.start * scenes.CELL : rows.stop * scenes.CELL] for scene, rows in views
    ]
    cells = [(scenes.cells(scene), rows) for scene, rows in views]
    targets = {
        name: np.stack(
            [getattr(cell, name)[rows.start : rows.stop].reshape(-1, slots) for cell, rows in cells]
        )
        for name, (slots, _) in scenes.HEADS.items()
    }
    return Batch(np.stack(pixels), {name: target.astype(np.int32) for name, target in targets.items()})


def chosen(
    asked: list[questions.Question], stage: Stage, rng: np.random.Generator
) -> list[questions.Question]:
    """`stage.questions` of them, first a category by its weight, then any of its questions."""
    by_category: dict[str, list[questions.Question]] = {}
    for question in asked:
        by_category.setdefault(question.category, []).append(question)
    names = [name for name in by_category if not stage.mixture or stage.mixture.get(name, 0) > 0]
    weights = np.array([stage.mixture.get(name, 1.0) for name in names])
    picked: list[questions.Question] = []
    for place in rng.choice(len(names), size=stage.questions, p=weights / weights.sum()):
        several = by_category[names[place]]
        picked.append(several[int(rng.integers(len(several)))])
    return picked
