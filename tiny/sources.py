"""Where batches come from: generated scenes. The same seed, step and share always give the same batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastvlm_mlx.config import IMAGE_MARK
from fastvlm_mlx.inputs.prompt import render
from fastvlm_mlx.train.batches import Batch, Integers, Sample, Share, collate, conversation
from fastvlm_mlx.train.data import tokenizer_at

from . import composing, disguise, drawing, questions, scenes
from .recipe import Stage

TOKENS = scenes.GRID**2  # of a scene
_HIDING = 2  # sets the stream of disguises apart from that of questions
_BLANK = np.zeros((0, 0, 0, 3), np.uint8)  # no pictures: their cells stand for them


@dataclass(frozen=True)
class Scenes:
    seed: int
    tokenizer: Path  # the directory it is in

    def batch(self, stage: Stage, number: int, step: int, share: Share) -> Batch:
        """`number` is the stage's place in the recipe: no two stages see the same pictures."""
        mine = range(share.rank, stage.batch, share.ranks)
        shown = [_shown(stage, self.seed * 1000 + number, step, place) for place in mine]
        symbols = stage.kind == "symbols"
        pixels = _BLANK if symbols else np.stack([drawing.draw(scene) for scene in shown])
        cells = {} if stage.kind == "answers" else _cells(shown)
        hiding = np.random.default_rng([self.seed, step, share.rank, _HIDING])
        disguises = [disguise.drawn(scene, stage.disguise, hiding) for scene in shown]
        if stage.disguise:
            cells = disguise.told(cells, disguises)
        if stage.kind in ("cells", "projector"):
            return Batch(pixels, cells)
        rng = np.random.default_rng([self.seed, step, share.rank])
        samples = [
            self._sample(disguises[picture].said(question), picture, TOKENS)
            for picture, scene in enumerate(shown)
            for question in chosen(questions.ask(scene, rng), stage, rng)
        ]
        return replace(collate(pixels, samples, TOKENS), cells=cells)

    def _sample(self, question: questions.Question, picture: int, tokens: int) -> Sample:
        asked = render(question.text, 1)
        return conversation(
            [(asked, False), (f"{question.answer}<|im_end|>", True)],
            [picture],
            tokens,
            tokenizer_at(self.tokenizer).encode,
            IMAGE_MARK,
        )


def _shown(stage: Stage, seed: int, step: int, place: int) -> scenes.Scene:
    index = step * stage.batch + place
    if place < stage.pages:
        return composing.page(seed, index, "train")
    return composing.scene(seed, index, "train", scenes.ALIKE if stage.alike else scenes.KINDS)


def _cells(shown: list[scenes.Scene]) -> dict[str, Integers]:
    """What each token is to say: (P, cells, slots)"""
    cells = [scenes.cells(scene) for scene in shown]
    targets = {
        name: np.stack([getattr(cell, name).reshape(-1, slots) for cell in cells])
        for name, (slots, _) in scenes.HEADS.items()
    }
    return {name: target.astype(np.int32) for name, target in targets.items()}


def chosen(
    asked: list[questions.Question], stage: Stage, rng: np.random.Generator
) -> list[questions.Question]:
    """`stage.questions` of them, first a category by its weight, then any of its questions. A kind that the
    mixture names counts as a category."""
    by_name: dict[str, list[questions.Question]] = {}
    for question in asked:
        name = question.kind if question.kind in stage.mixture else question.category
        by_name.setdefault(name, []).append(question)
    names = [name for name in by_name if not stage.mixture or stage.mixture.get(name, 0) > 0]
    weights = np.array([stage.mixture.get(name, 1.0) for name in names])
    picked: list[questions.Question] = []
    for place in rng.choice(len(names), size=stage.questions, p=weights / weights.sum()):
        several = by_name[names[place]]
        picked.append(several[int(rng.integers(len(several)))])
    return picked
