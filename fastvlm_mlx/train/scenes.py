"""What a picture contains: drawn by lot, with everything about it known.

A picture is 256 x 256 px, seen as 4 x 4 cells of 64 px, one visual token each. `cells` says what lies in each
cell, so that an encoder can be taught where things are before a language model is taught to talk about them.
Centres of things and letters keep well inside the slot that they are counted to.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from .words import TEST_WORDS, TRAIN_WORDS

SIDE, CELL, GRID = 256, 64, 4
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
RGB = tuple[int, int, int]
T = TypeVar("T")

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
SIGNS = ("stop", "yield", "no entry", "speed limit", "priority road", "one way left", "one way right")
LIMITS = tuple(range(10, 130, 10))
FONTS = ("aileron", "bitmap", "stroke")
GLYPHS = string.ascii_uppercase + string.digits
KINDS = {"objects": 0.45, "text": 0.22, "chart": 0.16, "sign": 0.07, "mixed": 0.10}

# Never drawn in training. Each shape and each colour loses at most two.
HELD_OUT = frozenset(
    {
        *(("circle", "green"), ("circle", "pink"), ("square", "purple"), ("square", "orange")),
        *(("triangle", "blue"), ("triangle", "white"), ("diamond", "red"), ("diamond", "brown")),
        *(("star", "black"), ("heart", "yellow"), ("cross", "green"), ("ring", "red")),
    }
)
SEEN = tuple((shape, colour) for shape in SHAPES for colour in NAMES if (shape, colour) not in HELD_OUT)
UNSEEN = tuple(sorted(HELD_OUT))

# What training supervises in every cell: slots in the cell, classes of each (0 is "nothing").
HEADS: dict[str, tuple[int, int]] = {
    "shape": (1, 1 + len(SHAPES)),
    "colour": (1, 1 + len(COLOURS)),
    "size": (1, 1 + len(SIZES)),
    "glyphs": (4, 1 + len(GLYPHS)),
    "bars": (2, 9),
    "bar_colour": (2, 1 + len(COLOURS)),
    "sign": (1, 1 + len(SIGNS)),
}
MASKED = -1
_THING_CONTRAST, _TEXT_CONTRAST = 95.0, 75.0
_CLEAR = 12  # px by which the tallest and the shortest bar stand out


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
        return int(self.y // CELL), int(self.x // CELL)


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


def scene(seed: int, index: int, split: Split) -> Scene:
    """Scene `index` of a stream; the two splits draw from separate streams."""
    return sample(np.random.default_rng([seed, SPLITS.index(split), index]), split)


def sample(rng: np.random.Generator, split: Split) -> Scene:
    """One scene. A draft whose colours suit no background is thrown away and drawn anew."""
    kind = str(rng.choice(tuple(KINDS), p=tuple(KINDS.values())))
    while True:
        made = _MAKERS[kind](rng, split)
        if made is not None:
            return made


def cells(scene: Scene) -> Cells:
    """What lies in each cell of the picture."""
    made = {name: np.zeros((GRID, GRID, slots), np.int8) for name, (slots, _) in HEADS.items()}
    for thing in scene.things:
        made["shape"][thing.cell] = 1 + SHAPES.index(thing.shape)
        made["colour"][thing.cell] = 1 + NAMES.index(thing.colour)
        made["size"][thing.cell] = 1 + tuple(SIZES).index(thing.size)
    for line in scene.lettering():
        for letter, x in line.letters():
            column, slot = divmod(int(x // 16), 4)
            made["glyphs"][int(line.y // CELL), column, slot] = 1 + GLYPHS.index(letter)
    for bar in scene.chart.bars if scene.chart else ():
        row, depth = divmod(int(bar.top), CELL)
        column, slot = divmod(int(bar.x // 32), 2)
        made["bars"][row, column, slot] = 1 + depth // 8
        made["bar_colour"][row, column, slot] = 1 + NAMES.index(bar.colour)
    if scene.sign:
        made["sign"][int(scene.sign.y // CELL), int(scene.sign.x // CELL)] = 1 + SIGNS.index(scene.sign.kind)
    return Cells(**{name: array[..., 0] if HEADS[name][0] == 1 else array for name, array in made.items()})


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options; unlike `Generator.choice` it keeps their type."""
    return options[int(rng.random() * len(options))]


def held_out_number(number: int) -> bool:
    """Whether training must not show this number."""
    return number >= 10 and number % 7 == 3


def distance(first: RGB, second: RGB) -> float:
    """How far apart two colours are."""
    return math.dist(first, second)


def luma(rgb: RGB) -> float:
    """How light a colour is, 0 to 255."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def contrasts(background: Background, things: Sequence[RGB], inks: Sequence[RGB]) -> bool:
    """Whether every thing and every ink stands out from every shade of the background."""
    ends = (background.first, background.second)
    shades = (*ends, _mix(*ends, 0.5))
    return all(distance(rgb, shade) >= _THING_CONTRAST for rgb in things for shade in shades) and all(
        abs(luma(ink) - luma(shade)) >= _TEXT_CONTRAST for ink in inks for shade in shades
    )


def _mix(first: RGB, second: RGB, share: float) -> RGB:
    a, b, c = (round(p + (q - p) * share) for p, q in zip(first, second, strict=True))
    return a, b, c


def _near(rng: np.random.Generator, middle: RGB, spread: RGB) -> RGB:
    a, b, c = (
        min(255, max(0, m - s + int(rng.random() * (2 * s + 1)))) for m, s in zip(middle, spread, strict=True)
    )
    return a, b, c


def shade_of(rng: np.random.Generator, colour: str) -> RGB:
    """An RGB value that a person would call `colour`."""
    return _near(rng, *COLOURS[colour])


_BACKGROUNDS = ("plain", "gradient", "noise", "stripes", "checks", "dots")
_TONES = ("grey", "pastel", "middle", "dark")


def _tone(rng: np.random.Generator) -> RGB:
    match pick(rng, _TONES):
        case "grey":
            level = int(rng.integers(175, 250))
            return _near(rng, (level, level, level), (4, 4, 4))
        case "pastel":
            return _near(rng, (222, 222, 222), (30, 30, 30))
        case "middle":
            return _near(rng, (128, 132, 136), (22, 18, 22))
        case _:
            return _near(rng, (42, 44, 50), (26, 26, 26))


def _background(
    rng: np.random.Generator, things: Sequence[RGB] = (), inks: Sequence[RGB] = (), tries: int = 60
) -> Background | None:
    for _ in range(tries):
        first = _tone(rng)
        made = Background(
            kind=pick(rng, _BACKGROUNDS),
            first=first,
            second=_near(rng, first, (20, 20, 20)),
            period=rng.uniform(9, 30),
            angle=rng.uniform(0, math.pi),
            seed=int(rng.integers(2**31)),
        )
        if contrasts(made, things, inks):
            return made
    return None


def _combinations(rng: np.random.Generator, split: Split, count: int) -> list[tuple[str, str]]:
    """(shape, colour) of each thing; often alike in one, so that counting and telling apart matter."""
    chosen: list[tuple[str, str]] = []
    for i in range(count):
        pool = SEEN if split == "train" else UNSEEN if i < (count + 1) // 2 else SEEN + UNSEEN
        if chosen and rng.random() < 0.4:
            shape, colour = pick(rng, chosen)
            side = int(rng.integers(2))
            pool = tuple(one for one in pool if one[side] == (shape, colour)[side]) or pool
        chosen.append(pick(rng, pool))
    return chosen


_TURN = {
    "circle": 0,
    "ring": 0,
    "square": 7,
    "diamond": 5,
    "cross": 8,
    "heart": 12,
    "triangle": 10,
    "star": 16,
}


def _things(rng: np.random.Generator, split: Split, free: Sequence[tuple[int, int]]) -> tuple[Thing, ...]:
    count = min(int(rng.choice((1, 2, 3, 4, 5, 6), p=(0.10, 0.22, 0.26, 0.22, 0.12, 0.08))), len(free))
    spots = rng.choice(len(free), count, replace=False)
    made = []
    for (shape, colour), spot in zip(_combinations(rng, split, count), spots, strict=True):
        row, column = free[int(spot)]
        size = pick(rng, tuple(SIZES))
        span = rng.uniform(*SIZES[size])
        slack = min((CELL - span) / 2, 16)
        x, y = (CELL * place + CELL / 2 + rng.uniform(-slack, slack) for place in (column, row))
        turn = rng.uniform(-1, 1) * _TURN[shape]
        made.append(Thing(shape, colour, size, x, y, span, turn, shade_of(rng, colour)))
    return tuple(made)


def _number(rng: np.random.Generator, split: Split) -> str:
    while True:
        digits = int(rng.choice((1, 2, 3, 4), p=(0.15, 0.35, 0.3, 0.2)))
        number = int(rng.integers(max(1, 10 ** (digits - 1)), 10**digits))
        if digits == 1 or held_out_number(number) == (split == "test"):
            return str(number)


def _word(rng: np.random.Generator, split: Split) -> str:
    if split == "test":
        return pick(rng, TEST_WORDS)
    if rng.random() < 0.4:
        return pick(rng, TRAIN_WORDS)
    while True:
        letters = rng.integers(26, size=int(rng.integers(1, 8)))
        word = "".join(string.ascii_uppercase[int(i)] for i in letters)
        if word not in _TEST_SET:
            return word


_TEST_SET = frozenset(TEST_WORDS)


def _style(rng: np.random.Generator, cap: float, rgb: RGB) -> Style:
    font = pick(rng, FONTS)
    return Style(font, int(rng.integers(3)), 0.22 if rng.random() < 0.2 else 0.0, cap, rgb)


def _line(rng: np.random.Generator, split: Split, row: int, cap: float, stray: float) -> Line:
    text = _number(rng, split) if rng.random() < 0.35 else _word(rng, split)
    advance = min(max(17.5, cap * rng.uniform(0.78, 1.1)), (SIDE - 10) / len(text))
    half = advance * len(text) / 2
    low, high = max(CELL * row + 32 - stray, cap / 2 + 6), min(CELL * row + 32 + stray, SIDE - 6 - cap / 2)
    middle = rng.uniform(half + 4, SIDE - half - 4)
    ink = shade_of(rng, pick(rng, NAMES))
    plate = None
    if rng.random() < 0.25:
        options = [tone for tone in (_tone(rng) for _ in range(8)) if abs(luma(tone) - luma(ink)) >= 90]
        plate = options[0] if options else None
    start = middle - half + advance / 2
    return Line(text, start, rng.uniform(low, high), advance, _style(rng, cap, ink), plate)


def _inks(lines: Sequence[Line]) -> tuple[RGB, ...]:
    return tuple(line.style.rgb for line in lines if line.plate is None)


def _objects(rng: np.random.Generator, split: Split) -> Scene | None:
    things = _things(rng, split, [(row, column) for row in range(GRID) for column in range(GRID)])
    background = _background(rng, things=[thing.rgb for thing in things])
    return Scene("objects", background, things=things) if background else None


def _text(rng: np.random.Generator, split: Split) -> Scene | None:
    rows = sorted(int(row) for row in rng.choice(GRID, 2 if rng.random() < 0.4 else 1, replace=False))
    lines = tuple(_line(rng, split, row, rng.uniform(20, 40), 13) for row in rows)
    crowded = any(b.y - a.y < (a.style.cap + b.style.cap) / 2 + 18 for a, b in pairwise(lines))
    background = None if crowded else _background(rng, inks=_inks(lines))
    return Scene("text", background, lines=lines) if background else None


def _mixed(rng: np.random.Generator, split: Split) -> Scene | None:
    row = int(rng.integers(GRID))
    line = _line(rng, split, row, rng.uniform(20, 28), 8)
    things = _things(rng, split, [(r, column) for r in range(GRID) if r != row for column in range(GRID)])
    background = _background(rng, things=[thing.rgb for thing in things], inks=_inks((line,)))
    return Scene("mixed", background, things=things, lines=(line,)) if background else None


def _heights(rng: np.random.Generator, count: int, most: float) -> list[float]:
    while True:
        heights = [float(height) for height in rng.uniform(16, most, count)]
        low, *_, high = order = sorted(heights)
        if high - order[-2] >= _CLEAR and order[1] - low >= _CLEAR:
            return heights


def _chart(rng: np.random.Generator, split: Split) -> Scene | None:
    count = int(rng.integers(3, 6))
    gap = rng.uniform(34, min(62, 232 / count))
    left = rng.uniform(12, SIDE - 12 - gap * count) + gap / 2
    base, cap = rng.uniform(192, 202), rng.uniform(20, 26)
    y = rng.uniform(max(212.0, base + cap / 2 + 5), min(238, SIDE - 5 - cap / 2))
    ink = shade_of(rng, pick(rng, ("black", "white", "blue", "brown")))
    style = _style(rng, cap, ink)
    same = rng.random() < 0.4
    colours = [pick(rng, NAMES)] * count if same else [NAMES[int(i)] for i in rng.permutation(10)[:count]]
    rgb = shade_of(rng, colours[0])
    labels = [string.ascii_uppercase[int(i)] for i in rng.permutation(26)[:count]]
    bars = tuple(
        Bar(Line(label, left + gap * i, y, gap, style), left + gap * i, base - height, colour,
            rgb if same else shade_of(rng, colour))
        for i, (label, height, colour) in enumerate(
            zip(labels, _heights(rng, count, base - 16), colours, strict=True)
        )
    )  # fmt: skip
    grid = rng.uniform(20, 40) if rng.random() < 0.4 else 0.0
    chart = Chart(bars, gap * rng.uniform(0.5, 0.78), base, ink, bool(rng.random() < 0.7), grid)
    background = _background(rng, things=[bar.rgb for bar in bars], inks=[ink])
    return Scene("chart", background, chart=chart) if background else None


# A sign's outer colour must stand out; what lies inside it brings its own contrast.
_SIGN_EDGES: dict[str, RGB] = {
    **dict.fromkeys(("stop", "yield", "no entry", "speed limit"), (200, 25, 35)),
    "priority road": (250, 250, 250),
    **dict.fromkeys(("one way left", "one way right"), (30, 80, 180)),
}


def _sign(rng: np.random.Generator, split: Split) -> Scene | None:
    kind, span = pick(rng, SIGNS), rng.uniform(92, 148)
    x, y = (float(at) for at in rng.uniform(span / 2 + 3, SIDE - span / 2 - 3, 2))
    line = None
    if kind in ("stop", "speed limit"):
        while abs(y % CELL - CELL / 2) > 14:  # its words would straddle two rows of cells
            y = rng.uniform(span / 2 + 3, SIDE - span / 2 - 3)
        numbers = [n for n in LIMITS if held_out_number(n) == (split == "test")]
        text = (
            "STOP"
            if kind == "stop"
            else str(pick(rng, LIMITS if rng.random() < 0.5 and split == "test" else numbers))
        )
        advance = span * (0.205 if kind == "stop" else 0.26 if len(text) < 3 else 0.205)
        ink = (255, 255, 255) if kind == "stop" else (15, 15, 15)
        style = Style(
            pick(rng, ("aileron", "stroke")),
            int(rng.integers(1, 3)),
            0.0,
            span * rng.uniform(0.25, 0.32),
            ink,
        )
        line = Line(text, x - advance * (len(text) - 1) / 2, y, advance, style)
    background = _background(rng, things=[_SIGN_EDGES[kind]])
    return Scene("sign", background, sign=Sign(kind, x, y, span, line)) if background else None


_MAKERS: dict[str, Callable[[np.random.Generator, Split], Scene | None]] = {
    "objects": _objects,
    "text": _text,
    "chart": _chart,
    "sign": _sign,
    "mixed": _mixed,
}
