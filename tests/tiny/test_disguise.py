"""Names that are made up: one for one, everywhere alike, and never in a picture."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from fastvlm_mlx.errors import ConfigError
from tiny import composing, disguise, losses, questions, scenes, sources
from tiny.disguise import Disguise
from tiny.recipe import Stage

ALL = Disguise({"circle": "zuba", "cross": "kine", "red": "mogu"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A big red circle.", "A big mogu zuba."),
        ("Are there more crosses than red circles?", "Are there more kinees than mogu zubas?"),
        ("a ring, the word CIRCLE, reddish", "a ring, the word CIRCLE, reddish"),
    ],
)
def test_names_are_exchanged_wherever_they_are_said(text: str, said: str) -> None:
    question = questions.Question("yesno", text, text)
    assert ALL.said(question) == questions.Question("yesno", said, said)


def scene_of(kind: str) -> scenes.Scene:
    return next(made for n in range(999) if (made := composing.scene(3, n, "train")).kind == kind)


def test_in_a_share_of_scenes_all_shapes_or_all_colours_or_both_are_made_up() -> None:
    scene, rng = scene_of("objects"), np.random.default_rng(0)
    drawn = [disguise.drawn(scene, 0.75, rng).names for _ in range(400)]
    assert all(len(set(names.values())) == len(names) for names in drawn)
    shapes, colours = frozenset(scenes.SHAPES), frozenset(scenes.NAMES)
    kinds = Counter(frozenset(names) for names in drawn)
    assert kinds.keys() == {frozenset(), shapes, colours, shapes | colours}
    assert all(count == pytest.approx(100, abs=30) for count in kinds.values())
    assert all(disguise.drawn(scene, 1.0, rng).names for _ in range(50))
    assert not any(disguise.drawn(scene, 0.0, rng).names for _ in range(50))


@pytest.mark.parametrize("kind", ["chart", "text", "sign"])
def test_what_has_no_things_keeps_its_names(kind: str) -> None:
    assert not disguise.drawn(scene_of(kind), 1.0, np.random.default_rng(0)).names


def test_cells_say_what_the_words_say() -> None:
    shown = [composing.scene(5, n, "train") for n in range(30)]
    cells = sources._cells(shown)
    rng = np.random.default_rng(1)
    disguises = [disguise.drawn(scene, 0.5, rng) for scene in shown]
    told = disguise.told(cells, disguises)
    assert all(np.array_equal(told[name], cells[name]) for name in ("size", "glyphs", "row", "bar_colour"))
    for picture, (scene, own) in enumerate(zip(shown, disguises, strict=True)):
        for thing in scene.things:
            place = thing.cell[0] * scenes.GRID + thing.cell[1]
            for slot, (kind, real) in enumerate((("shape", thing.shape), ("colour", thing.colour))):
                made_up = told[disguise.HEAD][picture, place, slot]
                assert bool(made_up) == (real in own.names)
                assert bool(told[kind][picture, place, 0]) != bool(made_up)
                if made_up:
                    assert disguise._MADE_UP[made_up - 1] == own.names[real]


def test_a_cell_s_symbol_is_of_the_made_up_name() -> None:
    raw = losses.cell_heads(8, 4, 16, mx.random.key(0))
    cells = sources._cells([scene_of("objects")])
    targets = {name: mx.array(cell) for name, cell in cells.items()}
    hidden = disguise.told(cells, [Disguise({})])
    plain = {name: mx.array(cell) for name, cell in hidden.items()}
    assert mx.array_equal(losses.symbols(raw, targets), losses.symbols(raw, plain))
    made_up = disguise.told(cells, [Disguise(dict.fromkeys(scenes.SHAPES, "zuba"))])
    changed = {name: mx.array(cell) for name, cell in made_up.items()}
    differs = mx.any(losses.symbols(raw, targets) != losses.symbols(raw, changed), axis=1)
    assert mx.array_equal(differs, targets["shape"][0, :, 0] > 0)


@pytest.mark.parametrize(("kind", "share"), [("answers", 0.5), ("symbols", 1.5), ("symbols", -0.1)])
def test_a_disguise_is_of_symbols(kind: str, share: float) -> None:
    with pytest.raises(ConfigError, match="disguise"):
        Stage("s", 1, 1e-3, kind=kind, disguise=share)  # type: ignore[arg-type]
