"""The made-up training pictures: what is drawn, what is said to be there and what is asked agree."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny import album
from tiny.composing import contrasts, scene
from tiny.drawing import draw
from tiny.exercises import listing
from tiny.questions import CANT_TELL, CATEGORIES, Clue, Question, ask, corpus, matching
from tiny.scenes import (
    CELL,
    COLOURS,
    GLYPHS,
    HEADS,
    HELD_OUT,
    KINDS,
    NAMES,
    PITCH,
    SHAPES,
    SIDE,
    SIZES,
    SPLITS,
    Scene,
    Split,
    cells,
    held_out,
)
from tiny.wordings import describe
from tiny.words import TEST_WORDS, TRAIN_WORDS

SEED = 3


@pytest.fixture(scope="module")
def drawn() -> dict[Split, list[Scene]]:
    return {split: [scene(SEED, index, split) for index in range(300)] for split in SPLITS}


@pytest.fixture(scope="module")
def both(drawn: dict[Split, list[Scene]]) -> list[Scene]:
    return [*drawn["train"], *drawn["test"]]


@pytest.fixture(scope="module")
def asked(both: list[Scene]) -> list[tuple[Scene, Question]]:
    return [(one, q) for i, one in enumerate(both) for q in ask(one, np.random.default_rng(i))]


def words(scenes: list[Scene]) -> set[str]:
    return {line.text for one in scenes for line in one.lines}


def numbers(scenes: list[Scene]) -> set[str]:
    return {line.text for one in scenes for line in one.lettering() if line.text.isdigit()}


def test_a_scene_and_its_picture_are_determined_by_seed_index_and_split() -> None:
    for split in SPLITS:
        one, again = scene(SEED, 7, split), scene(SEED, 7, split)
        assert one == again
        assert np.array_equal(draw(one), draw(again))
        assert ask(one, np.random.default_rng(0)) == ask(one, np.random.default_rng(0))
    assert scene(SEED, 7, "train") != scene(SEED, 7, "test")
    assert scene(SEED, 7, "train") != scene(SEED, 8, "train")


def test_every_kind_of_scene_is_drawn(both: list[Scene]) -> None:
    share = Counter(one.kind for one in both)
    for kind, wanted in KINDS.items():
        assert abs(share[kind] / len(both) - wanted) < 0.06


def test_held_out_combinations_are_spread_over_shapes_and_colours() -> None:
    assert len(HELD_OUT) == 12
    assert max(Counter(shape for shape, _ in HELD_OUT).values()) <= 2
    assert max(Counter(colour for _, colour in HELD_OUT).values()) <= 2


def test_held_out_combinations_words_and_numbers_never_occur_in_training(
    drawn: dict[Split, list[Scene]],
) -> None:
    train = drawn["train"]
    assert not HELD_OUT & {(thing.shape, thing.colour) for one in train for thing in one.things}
    assert not words(train) & set(TEST_WORDS)
    assert not any(held_out(number) for number in numbers(train))


def test_the_test_split_shows_what_was_held_out(drawn: dict[Split, list[Scene]]) -> None:
    test = drawn["test"]
    for one in test:
        held = sum((thing.shape, thing.colour) in HELD_OUT for thing in one.things)
        assert 2 * held >= len(one.things)
    assert {word for word in words(test) if not word.isdigit()} <= set(TEST_WORDS)
    assert any(held_out(number) for number in numbers(test))


def test_word_lists_are_apart_and_long_enough() -> None:
    assert len(set(TEST_WORDS)) >= 250
    assert len(set(TRAIN_WORDS)) >= 250
    assert not set(TEST_WORDS) & set(TRAIN_WORDS)
    assert all(3 <= len(word) <= 6 and word.isalpha() for word in TEST_WORDS + TRAIN_WORDS)


def test_training_questions_never_name_what_was_held_out(drawn: dict[Split, list[Scene]]) -> None:
    pairs = [f"{colour} {shape}" for shape, colour in HELD_OUT]
    for i, one in enumerate(drawn["train"]):
        for question in ask(one, np.random.default_rng(i)):
            assert not any(pair in question.text for pair in pairs), question
            named = {word.strip("?.") for word in question.text.split()}
            assert not named & set(TEST_WORDS), question


def test_targets_have_the_declared_shapes_and_classes(both: list[Scene]) -> None:
    for one in both:
        target = cells(one)
        assert {field.name for field in fields(target)} == set(HEADS)
        for name, (slots, classes) in HEADS.items():
            array = getattr(target, name)
            assert array.dtype == np.int8
            assert array.shape == ((4, 4) if slots == 1 else (4, 4, slots))
            assert array.min() >= -1
            assert array.max() < classes


def test_nothing_in_a_scene_shares_a_slot_of_the_targets(both: list[Scene]) -> None:
    for one in both:
        target = cells(one)
        assert np.count_nonzero(target.shape) == len(one.things)
        assert np.count_nonzero(target.glyphs) == sum(len(line.text) for line in one.spelled())
        assert np.count_nonzero(target.bars) == (len(one.chart.bars) if one.chart else 0)
        assert np.count_nonzero(target.sign) == (one.sign is not None)


def test_targets_spell_the_text_and_name_the_things(both: list[Scene]) -> None:
    for one in both:
        target = cells(one)
        for line in one.spelled():
            row = target.glyphs[int(line.y // CELL)].reshape(-1)
            assert "".join(GLYPHS[i - 1] for i in row if i).find(line.text) >= 0
        for thing in one.things:
            assert SHAPES[target.shape[thing.cell] - 1] == thing.shape
            assert NAMES[target.colour[thing.cell] - 1] == thing.colour
            assert tuple(SIZES)[target.size[thing.cell] - 1] == thing.size


def test_everything_lies_in_the_picture_and_letters_keep_near_the_middle_of_their_row_and_column(
    both: list[Scene],
) -> None:
    for one in both:
        for line in one.lettering():
            cap, right = line.style.cap, line.x + (len(line.text) - 1) * line.advance
            assert abs(line.y % CELL - CELL / 2) <= 14.5
            assert cap / 2 <= line.y <= SIDE - cap / 2
            assert 0.4 * line.advance <= line.x
            assert right + 0.4 * line.advance <= SIDE
        for line in one.spelled():
            assert all(abs(x % PITCH - PITCH / 2) <= 3.01 for _, x in line.letters())
        for thing in one.things:
            for at, place in zip((thing.y, thing.x), thing.cell, strict=True):
                assert CELL * place <= at - thing.span / 2 + 0.01
                assert at + thing.span / 2 <= CELL * (place + 1) + 0.01
        if one.chart:
            assert len({int(bar.x // 32) for bar in one.chart.bars}) == len(one.chart.bars)
            tops = sorted(bar.top for bar in one.chart.bars)
            assert tops[1] - tops[0] >= 19.99
            assert tops[-1] - tops[-2] >= 19.99


def test_things_and_letters_stand_out_from_the_background(both: list[Scene]) -> None:
    for one in both:
        bars = [bar.rgb for bar in one.chart.bars] if one.chart else []
        inks = [line.style.rgb for line in one.lines if line.plate is None]
        assert contrasts(one.background, [*(thing.rgb for thing in one.things), *bars], inks)


def test_the_picture_shows_each_thing_in_its_colour(both: list[Scene]) -> None:
    for one in [one for one in both if one.things][:60]:
        picture = draw(one)
        assert picture.shape == (SIDE, SIDE, 3)
        for thing in one.things:
            if thing.shape != "ring":
                assert tuple(picture[int(thing.y), int(thing.x)]) == thing.rgb
            middle, spread = COLOURS[thing.colour]
            assert all(abs(c - m) <= s for c, m, s in zip(thing.rgb, middle, spread, strict=True))


def test_yes_and_no_are_equally_likely() -> None:
    made = (ask(scene(9, i, "train"), np.random.default_rng(i)) for i in range(2000))
    answers = Counter(q.answer for questions in made for q in questions if q.category == "yesno")
    assert set(answers) == {"yes", "no"}
    assert abs(answers["yes"] / answers.total() - 0.5) < 0.05


def test_a_colour_shape_or_size_is_asked_of_one_thing_only(asked: list[tuple[Scene, Question]]) -> None:
    for one, question in asked:
        if question.category in ("colour", "shape", "size") and one.things:
            fitting = [thing for thing in one.things if matching(one, said(question.text)) == (thing,)]
            assert len(fitting) == 1, question
            assert getattr(fitting[0], question.category) == question.answer


def said(text: str) -> Clue:
    """The description in a question about a thing, which every wording puts after its last "the"."""
    named = text.rstrip("?.").split("the ")[-1].replace(",", "").split(" big or ")[0].split(" small or ")[0]
    found = named.split()
    return Clue(
        next((size for size in SIZES if size in found), None),
        next((colour for colour in NAMES if colour in found), None),
        next((shape for shape in SHAPES if shape in found), None),
    )


def test_counts_recount(asked: list[tuple[Scene, Question]]) -> None:
    for one, question in asked:
        if question.category != "count":
            continue
        found = {word.rstrip("?.") for word in question.text.split()}
        shape = next((s for s in SHAPES if {f"{s}s", f"{s}es"} & found), None)
        colour, size = (next((w for w in table if w in found), None) for table in (NAMES, SIZES))
        wanted = len(matching(one, Clue(size, colour, shape)))
        if "bars" in found:
            wanted = len(one.chart.bars) if one.chart else 0
        assert question.answer == str(wanted), question


def test_readings_and_bars_agree_with_the_scene(asked: list[tuple[Scene, Question]]) -> None:
    for one, question in asked:
        if question.category in ("read", "number"):
            shown = one.lines or one.lettering()
            assert question.answer == " ".join(line.text for line in shown)
        if question.category in ("tallest", "shortest"):
            assert one.chart
            end = min if question.category == "tallest" else max
            assert end(one.chart.bars, key=lambda bar: bar.top).label.text == question.answer
        if question.category in ("describe", "list"):
            assert question.answer == (describe if question.category == "describe" else listing)(one)
        assert question.category in CATEGORIES
        assert (question.answer == CANT_TELL) == (question.category == "unknown")


def test_descriptions_read_well(both: list[Scene]) -> None:
    for one in both:
        text = describe(one)
        assert text[0].isupper()
        assert text.endswith(".")
        assert all(f"{thing.size} {thing.colour} {thing.shape}" in text for thing in one.things)
        assert all(line.text in text for line in one.lines)


def test_a_corpus_has_as_many_strings_as_asked_for() -> None:
    assert len(list(corpus(np.random.default_rng(0), 101))) == 101


@pytest.mark.parametrize("split", SPLITS)
def test_a_written_set_names_pictures_that_exist(tmp_path: Path, split: Split) -> None:
    out = tmp_path / "set"
    count = album.write(out, 12, SEED, split, 4)
    rows = [json.loads(row) for row in (out / "data.jsonl").read_text().splitlines()]
    assert len(rows) == count.total() == 48
    assert len({row["id"] for row in rows}) == 48
    for row in rows:
        with Image.open(out / row["image"]) as picture:
            assert picture.size == (SIDE, SIDE)
    assert ("list" in count) == (split == "train")
