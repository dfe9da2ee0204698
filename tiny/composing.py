"""Scenes by lot. Centres of things and letters keep well inside the slot that they are counted to."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from typing import TypeVar

import numpy as np

from .scenes import (
    CELL,
    COLOURS,
    GRID,
    HELD_OUT,
    KINDS,
    LIMITS,
    NAMES,
    PITCH,
    RGB,
    SHAPES,
    SIDE,
    SIGN_EDGES,
    SIGNS,
    SIZES,
    SPLITS,
    Background,
    Bar,
    Chart,
    Line,
    Scene,
    Sign,
    Split,
    Style,
    Thing,
    held_out,
)
from .words import TEST_WORDS, TRAIN_WORDS

T = TypeVar("T")

_BACKGROUNDS = ("plain", "gradient", "noise", "stripes", "checks", "dots")
# The middle of a background colour's range, None for any light grey, and how far each channel strays from it.
_TONES: tuple[tuple[RGB | None, RGB], ...] = (
    (None, (4, 4, 4)),
    ((222, 222, 222), (30, 30, 30)),
    ((128, 132, 136), (22, 18, 22)),
    ((42, 44, 50), (26, 26, 26)),
)
_BACKGROUND_TRIES = 60
_THING_CONTRAST, _TEXT_CONTRAST, _PLATE_CONTRAST = 95.0, 75.0, 90.0
_SEEN = tuple(pair for pair in product(SHAPES, NAMES) if pair not in HELD_OUT)
_UNSEEN = tuple(sorted(HELD_OUT))
_THING_COUNTS = {1: 0.10, 2: 0.22, 3: 0.26, 4: 0.22, 5: 0.12, 6: 0.08}
# Degrees that a shape may be turned by, either way; a turned circle or ring is the same.
_TURNS = {"square": 7, "triangle": 10, "diamond": 5, "star": 16, "heart": 12, "cross": 8}
_DIGIT_COUNTS = {1: 0.15, 2: 0.35, 3: 0.3, 4: 0.2}
_CAPS = (24, 40)  # px of capitals
COLUMNS = SIDE // PITCH
_SWAY = 3  # px that letters and bars stand beside the middle of their column
_FONTS = ("aileron", "bitmap", "stroke")
_CLEAR = 20  # px by which the tallest and the shortest bar stand out


def scene(seed: int, index: int, split: Split, kinds: Mapping[str, float] = KINDS) -> Scene:
    """Scene `index` of a stream; the two splits draw from separate streams."""
    return sample(np.random.default_rng([seed, SPLITS.index(split), index]), split, kinds)


def page(seed: int, index: int, split: Split) -> Scene:
    """Like `scene`, of pictures full of letters: none that can be read, so none that is held out."""
    rng = np.random.default_rng([seed, len(SPLITS), SPLITS.index(split), index])
    while (made := _page(rng)) is None:
        pass
    return made


def sample(rng: np.random.Generator, split: Split, kinds: Mapping[str, float] = KINDS) -> Scene:
    """One scene. A draft whose colours suit no background is thrown away and drawn anew."""
    compose = _COMPOSERS[_weighted(rng, kinds)]
    while True:
        made = compose(rng, split)
        if made is not None:
            return made


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options; unlike `Generator.choice` it keeps their type."""
    return options[int(rng.random() * len(options))]


def contrasts(background: Background, things: Sequence[RGB], inks: Sequence[RGB]) -> bool:
    """Whether every thing and every ink stands out from every shade of the background."""
    ends = background.first, background.second
    shades = (*ends, tuple(round((p + q) / 2) for p, q in zip(*ends, strict=True)))
    return all(
        all(math.dist(rgb, shade) >= _THING_CONTRAST for rgb in things)
        and all(abs(_luma(ink) - _luma(shade)) >= _TEXT_CONTRAST for ink in inks)
        for shade in shades
    )


def _weighted(rng: np.random.Generator, shares: Mapping[T, float]) -> T:
    options = tuple(shares)
    return options[int(rng.choice(len(options), p=tuple(shares.values())))]


def _luma(rgb: Sequence[int]) -> float:
    """How light a colour is, 0 to 255."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def _near(rng: np.random.Generator, middle: RGB, spread: RGB) -> RGB:
    a, b, c = (
        min(255, max(0, m - s + int(rng.random() * (2 * s + 1)))) for m, s in zip(middle, spread, strict=True)
    )
    return a, b, c


def _shade_of(rng: np.random.Generator, colour: str) -> RGB:
    """An RGB value that a person would call `colour`."""
    return _near(rng, *COLOURS[colour])


def _tone(rng: np.random.Generator) -> RGB:
    middle, spread = pick(rng, _TONES)
    if middle is None:
        level = int(rng.integers(175, 250))
        middle = level, level, level
    return _near(rng, middle, spread)


def _on_background(
    rng: np.random.Generator,
    kind: str,
    things: tuple[Thing, ...] = (),
    lines: tuple[Line, ...] = (),
    chart: Chart | None = None,
    sign: Sign | None = None,
) -> Scene | None:
    """All this on a background that it stands out from, None where that is not soon found."""
    rgbs = [thing.rgb for thing in things]
    inks = [line.style.rgb for line in lines if line.plate is None]
    if chart:
        rgbs += [bar.rgb for bar in chart.bars]
        inks.append(chart.ink)
    if sign:
        rgbs.append(SIGN_EDGES[sign.kind])
    for _ in range(_BACKGROUND_TRIES):
        first = _tone(rng)
        background = Background(
            kind=pick(rng, _BACKGROUNDS),
            first=first,
            second=_near(rng, first, (20, 20, 20)),
            period=rng.uniform(9, 30),
            angle=rng.uniform(0, math.pi),
            seed=int(rng.integers(2**31)),
        )
        if contrasts(background, rgbs, inks):
            return Scene(kind, background, things, lines, chart, sign)
    return None


def _combinations(rng: np.random.Generator, split: Split, count: int) -> list[tuple[str, str]]:
    """(shape, colour) of each thing; often alike in one, so that counting and telling apart matter."""
    chosen: list[tuple[str, str]] = []
    for i in range(count):
        pool = _SEEN if split == "train" else _UNSEEN if i < (count + 1) // 2 else _SEEN + _UNSEEN
        if chosen and rng.random() < 0.4:
            before = pick(rng, chosen)
            side = int(rng.integers(2))
            pool = tuple(pair for pair in pool if pair[side] == before[side]) or pool
        chosen.append(pick(rng, pool))
    return chosen


def _things(rng: np.random.Generator, split: Split, rows: Sequence[int]) -> tuple[Thing, ...]:
    free = tuple(product(rows, range(GRID)))
    count = _weighted(rng, _THING_COUNTS)
    spots = rng.choice(len(free), count, replace=False)
    made = []
    for (shape, colour), spot in zip(_combinations(rng, split, count), spots, strict=True):
        row, column = free[int(spot)]
        size = pick(rng, tuple(SIZES))
        span = rng.uniform(*SIZES[size])
        slack = min((CELL - span) / 2, 16)
        x, y = (CELL * place + CELL / 2 + rng.uniform(-slack, slack) for place in (column, row))
        turn = rng.uniform(-1, 1) * _TURNS.get(shape, 0)
        made.append(Thing(shape, colour, size, x, y, span, turn, _shade_of(rng, colour)))
    return tuple(made)


def _number(rng: np.random.Generator, split: Split) -> str:
    while True:
        digits = _weighted(rng, _DIGIT_COUNTS)
        number = str(rng.integers(max(1, 10 ** (digits - 1)), 10**digits))
        if digits == 1 or held_out(number) == (split == "test"):
            return number


def _word(rng: np.random.Generator, split: Split) -> str:
    if split == "test":
        return pick(rng, TEST_WORDS)
    if rng.random() < 0.4:
        return pick(rng, TRAIN_WORDS)
    while True:
        letters = rng.integers(26, size=int(rng.integers(1, 8)))
        word = "".join(string.ascii_uppercase[int(i)] for i in letters)
        if not held_out(word):
            return word


def _style(rng: np.random.Generator, cap: float, rgb: RGB) -> Style:
    font = pick(rng, _FONTS)
    return Style(font, int(rng.integers(3)), 0.22 if rng.random() < 0.2 else 0.0, cap, rgb)


def _line(rng: np.random.Generator, split: Split, row: int, cap: float, stray: float) -> Line:
    text = _number(rng, split) if rng.random() < 0.35 else _word(rng, split)
    low, high = max(CELL * row + 32 - stray, cap / 2 + 6), min(CELL * row + 32 + stray, SIDE - 6 - cap / 2)
    ink = _shade_of(rng, pick(rng, NAMES))
    plate = None
    if rng.random() < 0.25:
        tones = [_tone(rng) for _ in range(8)]
        plate = next((tone for tone in tones if abs(_luma(tone) - _luma(ink)) >= _PLATE_CONTRAST), None)
    start = _column(rng, int(rng.integers(COLUMNS - len(text) + 1)))
    return Line(text, start, rng.uniform(low, high), PITCH, _style(rng, cap, ink), plate)


def _column(rng: np.random.Generator, number: int) -> float:
    """Where a letter or a bar of this column has its middle."""
    return PITCH * number + PITCH / 2 + rng.uniform(-_SWAY, _SWAY)


def _page(rng: np.random.Generator) -> Scene | None:
    """A full row of letters in every row of cells, all of one colour."""
    ink = _shade_of(rng, pick(rng, NAMES))
    lines = []
    for row in range(GRID):
        glyphs = pick(rng, (string.ascii_uppercase, string.ascii_uppercase, string.digits))
        text = "".join(pick(rng, glyphs) for _ in range(COLUMNS))
        cap = rng.uniform(*_CAPS)
        stray = 32 - cap / 2 - 4
        y = CELL * row + CELL / 2 + rng.uniform(-stray, stray)
        lines.append(Line(text, _column(rng, 0), y, PITCH, _style(rng, cap, ink)))
    return _on_background(rng, "text", lines=tuple(lines))


def _objects(rng: np.random.Generator, split: Split) -> Scene | None:
    return _on_background(rng, "objects", things=_things(rng, split, range(GRID)))


def _text(rng: np.random.Generator, split: Split) -> Scene | None:
    rows = sorted(int(row) for row in rng.choice(GRID, 2 if rng.random() < 0.4 else 1, replace=False))
    lines = tuple(_line(rng, split, row, rng.uniform(*_CAPS), 13) for row in rows)
    crowded = any(b.y - a.y < (a.style.cap + b.style.cap) / 2 + 18 for a, b in pairwise(lines))
    return None if crowded else _on_background(rng, "text", lines=lines)


def _mixed(rng: np.random.Generator, split: Split) -> Scene | None:
    row = int(rng.integers(GRID))
    line = _line(rng, split, row, rng.uniform(_CAPS[0], 30), 8)
    things = _things(rng, split, [other for other in range(GRID) if other != row])
    return _on_background(rng, "mixed", things=things, lines=(line,))


def _heights(rng: np.random.Generator, count: int, most: float) -> list[float]:
    while True:
        heights = [float(height) for height in rng.uniform(16, most, count)]
        low, *_, high = order = sorted(heights)
        if high - order[-2] >= _CLEAR and order[1] - low >= _CLEAR:
            return heights


def _chart(rng: np.random.Generator, split: Split) -> Scene | None:
    count = int(rng.integers(3, 6))
    apart = int(rng.integers(1, 3)) if count == 3 else 1  # columns
    gap, left = PITCH * apart, _column(rng, int(rng.integers(1, COLUMNS - apart * (count - 1) - 1)))
    base, cap = rng.uniform(192, 202), rng.uniform(20, 26)
    y = rng.uniform(max(212.0, base + cap / 2 + 5), min(238, SIDE - 5 - cap / 2))
    ink = _shade_of(rng, pick(rng, ("black", "white", "blue", "brown")))
    style = _style(rng, cap, ink)
    same = rng.random() < 0.4
    colours = [pick(rng, NAMES)] * count if same else [NAMES[int(i)] for i in rng.permutation(10)[:count]]
    rgb = _shade_of(rng, colours[0])
    labels = [string.ascii_uppercase[int(i)] for i in rng.permutation(26)[:count]]
    heights = _heights(rng, count, base - 16)
    bars = []
    for i, (label, height, colour) in enumerate(zip(labels, heights, colours, strict=True)):
        x = left + gap * i
        shade = rgb if same else _shade_of(rng, colour)
        bars.append(Bar(Line(label, x, y, gap, style), x, base - height, colour, shade))
    grid = rng.uniform(20, 40) if rng.random() < 0.4 else 0.0
    width = gap * rng.uniform(0.5, 0.78)
    chart = Chart(tuple(bars), width, base, ink, bool(rng.random() < 0.7), grid)
    return _on_background(rng, "chart", chart=chart)


def _sign(rng: np.random.Generator, split: Split) -> Scene | None:
    kind, line = pick(rng, SIGNS), None
    text = "STOP" if kind == "stop" else _limit(rng, split) if kind == "speed limit" else ""
    span = rng.uniform(126 if len(text) == 3 else 92, 148)
    x, y = (_mid_cell(rng, span / 2 + 3) for _ in range(2))
    if text:
        advance, font = 0.205 * span, pick(rng, ("aileron", "stroke"))
        if kind == "speed limit":  # its digits stand in columns
            advance, shift = PITCH, pick(rng, (-PITCH / 2, PITCH / 2)) if len(text) % 2 else 0
            x = CELL * pick(rng, (1, 2)) + CELL / 2 + shift + rng.uniform(-3, 3)
        ink = (255, 255, 255) if kind == "stop" else (15, 15, 15)
        style = Style(font, int(rng.integers(1, 3)), 0.0, span * rng.uniform(0.25, 0.32), ink)
        line = Line(text, x - advance * (len(text) - 1) / 2, y, advance, style)
    return _on_background(rng, "sign", sign=Sign(kind, x, y, span, line))


def _mid_cell(rng: np.random.Generator, margin: float) -> float:
    """A place so far from the picture's edges, and well inside a cell."""
    while True:
        place = rng.uniform(margin, SIDE - margin)
        if abs(place % CELL - CELL / 2) <= 14:
            return place


def _limit(rng: np.random.Generator, split: Split) -> str:
    """Every other picture of the test split shows any limit, the rest one that training never shows."""
    own = [limit for limit in LIMITS if held_out(limit) == (split == "test")]
    return pick(rng, LIMITS if rng.random() < 0.5 and split == "test" else own)


_COMPOSERS: dict[str, Callable[[np.random.Generator, Split], Scene | None]] = {
    "objects": _objects,
    "text": _text,
    "chart": _chart,
    "sign": _sign,
    "mixed": _mixed,
}
