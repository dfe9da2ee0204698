"""Made-up names for shapes and colours that are told and never drawn.

Of eight shapes and ten colours a language model learns by heart which go together, and does not believe its
eyes where two meet that never did. With dozens of each there is too much to learn by heart, and looking is
what is left. Names are exchanged one for one in all that is said about a scene and in what stands for its
cells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from .questions import Question
from .scenes import NAMES, SHAPES, Scene

Integers = npt.NDArray[np.int32]

_SYLLABLES = "zu ki mo ra te lo", "ba ne gu po fi da su ve ho"
_MADE_UP = tuple(first + second for first, second in product(*(part.split() for part in _SYLLABLES)))
_KINDS = {"shape": (SHAPES, _MADE_UP[:24]), "colour": (NAMES, _MADE_UP[24:])}
_HIDDEN = ("shape",), ("colour",), ("shape", "colour")
HEAD, SLOTS = "disguise", (2, 1 + len(_MADE_UP))  # beside `scenes.HEADS`: a made-up shape, a made-up colour
_WORDS = re.compile(rf"\b({'|'.join((*SHAPES, *NAMES))})(?=(?:s|es)?\b)")


@dataclass(frozen=True)
class Disguise:
    names: Mapping[str, str]  # real -> made up

    def said(self, question: Question) -> Question:
        text, answer = (self._spoken(part) for part in (question.text, question.answer))
        return replace(question, text=text, answer=answer)

    def _spoken(self, text: str) -> str:
        return _WORDS.sub(lambda found: self.names.get(found[1], found[1]), text)


def drawn(scene: Scene, share: float, rng: np.random.Generator) -> Disguise:
    """In this share of scenes the names of all shapes are made up, or of all colours, or of both: two real
    names that meet are then seldom enough that which never do is not worth learning. Bars keep theirs."""
    hidden = _HIDDEN[int(rng.integers(len(_HIDDEN)))]
    if not scene.things or scene.chart or rng.random() >= share:
        return Disguise({})
    names: dict[str, str] = {}
    for kind in hidden:
        real, made_up = _KINDS[kind]
        names |= zip(real, rng.permutation(made_up)[: len(real)].tolist(), strict=True)
    return Disguise(names)


def told(cells: Mapping[str, Integers], disguises: Sequence[Disguise]) -> dict[str, Integers]:
    """The cells' classes, those of made-up names moved to a head of their own: (P, cells, 2)"""
    changed, own = dict(cells), []
    for kind, (real, _) in _KINDS.items():
        tables = np.array(
            [[0, *(_place(disguise, name) for name in real)] for disguise in disguises], np.int32
        )
        values = cells[kind][..., 0]
        moved = np.take_along_axis(tables, values, axis=1)
        own.append(moved)
        changed[kind] = np.where(moved > 0, 0, values)[..., None]
    return changed | {HEAD: np.stack(own, axis=-1)}


def _place(disguise: Disguise, name: str) -> int:
    return 1 + _MADE_UP.index(disguise.names[name]) if name in disguise.names else 0
