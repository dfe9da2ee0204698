"""What a picture contains, with everything about it known.

A picture is 256 x 256 px, seen as 4 x 4 cells of 64 px, one visual token each. `cells` says what lies in each
cell, so that an encoder can be taught where things are before a language model is taught to talk about them.
Letters and bars stand in columns of 32 px, two to a cell.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .words import TEST_WORDS

SIDE, CELL, GRID, PITCH = 256, 64, 4, 32
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
# Name: the middle of its range and how far each channel strays from it.
COLOURS: dict[str, tuple[RGB, RGB]] = {
    "red": ((212, 32, 32), (22, 22, 22)),
    "orange": ((245, 138, 20), (9, 10, 18)),
    "yellow": ((245, 222, 45), (9, 12, 30)),
    "green": ((40, 155, 60), (25, 25, 25)),
    "blue": ((35, 85, 215), (25, 28, 28)),
    "purple": ((128, 42, 165), (16, 18, 22)),
    "pink": ((249, 135, 185), (5, 15, 15)),
    "brown": ((118, 68, 30), (13, 9, 11)),
    "black": ((18, 18, 20), (14, 14, 14)),
    "white": ((246, 246, 246), (8, 8, 8)),
}
NAMES = tuple(COLOURS)
SIZES: dict[str, tuple[float, float]] = {"small": (20, 26), "big": (42, 54)}
# A sign's outer colour must stand out; what lies inside it brings its own contrast.
RED, WHITE, BLUE = (200, 25, 35), (250, 250, 250), (30, 80, 180)
SIGN_EDGES: dict[str, RGB] = {
    "stop": RED,
    "yield": RED,
    "no entry": RED,
    "speed limit": RED,
    "priority road": WHITE,
    "one way left": BLUE,
    "one way right": BLUE,
}
SIGNS = tuple(SIGN_EDGES)
LIMITS = tuple(str(limit) for limit in range(10, 130, 10))
GLYPHS = string.ascii_uppercase + string.digits
KINDS = {"objects": 0.45, "text": 0.22, "chart": 0.16, "sign": 0.07, "mixed": 0.10}
ALIKE = dict.fromkeys(KINDS, 1 / len(KINDS))

# Combinations never drawn in training; each shape and each colour loses at most two. For words and numbers
# there is `held_out`.
HELD_OUT = frozenset(
    {
        *(("circle", "green"), ("circle", "pink"), ("square", "purple"), ("square", "orange")),
        *(("triangle", "blue"), ("triangle", "white"), ("diamond", "red"), ("diamond", "brown")),
        *(("star", "black"), ("heart", "yellow"), ("cross", "green"), ("ring", "red")),
    }
)

# What lies beside a thing: rows down, columns across.
SIDES = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
STEP = 16  # px of a bar's height that are told apart
# What training supervises in every cell: slots in the cell, classes of each (0 is "nothing").
HEADS: dict[str, tuple[int, int]] = {
    "shape": (1, 1 + len(SHAPES)),
    "colour": (1, 1 + len(COLOURS)),
    "size": (1, 1 + len(SIZES)),
    "glyphs": (2, 1 + len(GLYPHS)),
    "bars": (2, 1 + CELL // STEP),
    "bar_colour": (2, 1 + len(COLOURS)),
    "sign": (1, 1 + len(SIGNS)),
    "row": (1, 1 + GRID),
    "column": (1, 1 + GRID),
}
# How the classes of some heads are said.
SAID: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": NAMES,
    "size": tuple(SIZES),
    "glyphs": tuple(GLYPHS),
    "bar_colour": NAMES,
}
_TEST_SET = frozenset(TEST_WORDS)


@dataclass(frozen=True)
class Background:
    kind: str
    first: RGB
    second: RGB
    period: float
    angle: float
    seed: int


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str
    x: float
    y: float
    span: float
    angle: float
    rgb: RGB

    @property
    def cell(self) -> tuple[int, int]:
        return cell_at(self.x, self.y)


@dataclass(frozen=True)
class Style:
    font: str
    weight: int
    slant: float
    cap: float
    rgb: RGB


@dataclass(frozen=True)
class Line:
    """Letters with their centres `advance` apart, the first at `x`; `y` is the middle of the capitals."""

    text: str
    x: float
    y: float
    advance: float
    style: Style
    plate: RGB | None = None

    def letters(self) -> Iterator[tuple[str, float]]:
        return ((letter, self.x + i * self.advance) for i, letter in enumerate(self.text))


@dataclass(frozen=True)
class Bar:
    label: Line
    x: float
    top: float
    colour: str
    rgb: RGB

    @property
    def cell(self) -> tuple[int, int]:
        return cell_at(self.x, self.top)


@dataclass(frozen=True)
class Chart:
    bars: tuple[Bar, ...]
    width: float
    base: float
    ink: RGB
    axis: bool
    grid: float  # px between gridlines, 0 for none


@dataclass(frozen=True)
class Sign:
    kind: str
    x: float
    y: float
    span: float
    line: Line | None

    @property
    def cell(self) -> tuple[int, int]:
        return cell_at(self.x, self.y)


@dataclass(frozen=True)
class Scene:
    kind: str
    background: Background
    things: tuple[Thing, ...] = ()
    lines: tuple[Line, ...] = ()
    chart: Chart | None = None
    sign: Sign | None = None

    def lettering(self) -> tuple[Line, ...]:
        """Everything written in the picture: lines, the labels of bars, the words on a sign."""
        labels = tuple(bar.label for bar in self.chart.bars) if self.chart else ()
        return self.lines + labels + ((self.sign.line,) if self.sign and self.sign.line else ())

    def spelled(self) -> tuple[Line, ...]:
        """What is read letter by letter: all but the word of a stop sign, whose letters stand too close."""
        stop = self.sign.line if self.sign and self.sign.kind == "stop" else None
        return tuple(line for line in self.lettering() if line is not stop)


@dataclass(frozen=True)
class Cells:
    """Targets by cell, one field for each of HEADS; a head with several slots has them on the last axis."""

    shape: NDArray[np.int8]
    colour: NDArray[np.int8]
    size: NDArray[np.int8]
    glyphs: NDArray[np.int8]
    bars: NDArray[np.int8]
    bar_colour: NDArray[np.int8]
    sign: NDArray[np.int8]
    row: NDArray[np.int8]
    column: NDArray[np.int8]


def cell_at(x: float, y: float) -> tuple[int, int]:
    """The row and the column of a place in the picture."""
    return int(y // CELL), int(x // CELL)


def held_out(text: str) -> bool:
    """Whether training must not show this word or number."""
    return int(text) >= 10 and int(text) % 7 == 3 if text.isdigit() else text in _TEST_SET


def cells(scene: Scene) -> Cells:
    """What lies in each cell of the picture."""
    made = {name: np.zeros((GRID, GRID, slots), np.int8) for name, (slots, _) in HEADS.items()}
    for thing in scene.things:
        made["shape"][thing.cell] = 1 + SHAPES.index(thing.shape)
        made["colour"][thing.cell] = 1 + NAMES.index(thing.colour)
        made["size"][thing.cell] = 1 + tuple(SIZES).index(thing.size)
    for line in scene.spelled():
        for letter, x in line.letters():
            made["glyphs"][*cell_at(x, line.y), int(x % CELL // PITCH)] = 1 + GLYPHS.index(letter)
    for bar in scene.chart.bars if scene.chart else ():
        slot = int(bar.x % CELL // PITCH)
        made["bars"][*bar.cell, slot] = 1 + int(bar.top % CELL // STEP)
        made["bar_colour"][*bar.cell, slot] = 1 + NAMES.index(bar.colour)
    if scene.sign:
        made["sign"][scene.sign.cell] = 1 + SIGNS.index(scene.sign.kind)
    made["row"] += 1 + np.arange(GRID, dtype=np.int8)[:, None, None]
    made["column"] += 1 + np.arange(GRID, dtype=np.int8)[:, None]
    return Cells(**{name: array[..., 0] if HEADS[name][0] == 1 else array for name, array in made.items()})


if __name__ == "__main__":
    from tiny.album import main

    main()
