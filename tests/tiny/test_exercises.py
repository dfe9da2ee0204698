"""What only training asks names all there is, and agrees with what others ask."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tiny.composing import scene
from tiny.exercises import beside, by_colour, by_height, by_shape, finding, listing
from tiny.questions import Clue, ask, matching
from tiny.scenes import GRID, NAMES, SHAPES, SPLITS, Scene


@pytest.fixture(scope="module")
def both() -> list[Scene]:
    return [scene(3, index, split) for split in SPLITS for index in range(200)]


def test_lists_name_every_cell_and_all_that_is_shown(both: list[Scene]) -> None:
    order = list(range(GRID**2, 0, -1))
    for one in both:
        listed = listing(one).split(",")
        assert [cell[:2] for cell in listed] == [f"{row}{column}" for row in "1234" for column in "1234"]
        found = finding(one, order)
        held = [cell[3:] for cell in listed if len(cell) > 2]
        if one.chart:
            assert [part[0] for part in found.split(",")] == [b.label.text for b in one.chart.bars][::-1]
        else:
            assert sorted(part.partition(":")[0] for part in found.split(",")) == sorted(held)
        for thing in one.things:
            row, column = thing.cell
            assert f"{row + 1}{column + 1} {thing.size} {thing.colour} {thing.shape}" in listed


def test_every_shape_and_every_colour_has_its_things(both: list[Scene]) -> None:
    for one in both:
        for told, options, kind in (
            (by_shape(one, 3), SHAPES, "shape"),
            (by_colour(one, 3), NAMES, "colour"),
        ):
            keys = [part.partition(":")[0] for part in told.split(", ")]
            assert keys == [*options[3:], *options[:3]]
            for part in told.split(", "):
                key, _, found = part.partition(":")
                things = matching(one, Clue(**{kind: key}))
                assert len(re.findall(r"\d\d", found)) == len(things)
                for thing in things:
                    other = thing.colour if kind == "shape" else thing.shape
                    assert f" {thing.size} {other} {thing.cell[0] + 1}{thing.cell[1] + 1}" in found


def test_neighbours_are_those_that_are_asked_for(both: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for one in both:
        told = beside(one)
        for question in ask(one, rng):
            side = re.search(r"(to the left of|to the right of|above|below) the", question.text)
            if question.category == "position" and side:
                assert f"{side[1]} {question.answer}" in told


def test_bars_go_down(both: list[Scene]) -> None:
    for one in both:
        if one.chart:
            parts = [part.split() for part in by_height(one).split(", ")]
            heights = [int(height) for _, height in parts]
            assert heights == sorted(heights, reverse=True)
            assert sorted(label for label, _ in parts) == sorted(bar.label.text for bar in one.chart.bars)
