"""What only training asks: all there is to say of a scene at once, in an order that questions need.

A question that names a shape is answered by looking that shape up. Asked one at a time, that is learnt late
or never; an answer that goes through all the shapes looks up each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from .scenes import GRID, NAMES, SHAPES, SIDES, STEP, Scene, Thing, cell_at


def listing(scene: Scene) -> str:
    """Each of the 16 cells by its row and column, and what is in it."""
    seen = in_cells(scene)
    cells = [(row, column) for row in range(GRID) for column in range(GRID)]
    return ",".join(f"{_cell(cell)} {seen[cell]}" if cell in seen else _cell(cell) for cell in cells)


def finding(scene: Scene, order: Sequence[float]) -> str:
    """What is in any cell, and in which; of a chart each bar's label, colour and height. `order` has a number
    for each of what may be 16."""
    if scene.chart:
        base = scene.chart.base
        told = [f"{bar.label.text}:{bar.colour} {round((base - bar.top) / STEP)}" for bar in scene.chart.bars]
    else:
        told = [f"{what}:{_cell(cell)}" for cell, what in sorted(in_cells(scene).items())]
    return ",".join(one for _, one in sorted(zip(order[: len(told)], told, strict=True)))


def by_shape(scene: Scene, first: int) -> str:
    """Every shape from the `first` on, also those that are not there, with its things in reading order."""
    return _sorted(
        (shape, [f"{t.size} {t.colour} {_cell(t.cell)}" for t in _in_order(scene) if t.shape == shape])
        for shape in _from(SHAPES, first)
    )


def by_colour(scene: Scene, first: int) -> str:
    """The same of colours."""
    return _sorted(
        (name, [f"{t.size} {t.shape} {_cell(t.cell)}" for t in _in_order(scene) if t.colour == name])
        for name in _from(NAMES, first)
    )


def beside(scene: Scene) -> str:
    """Of each thing, in reading order, what is alone on a side of it."""
    return _sorted(
        (
            f"{thing.colour} {thing.shape}",
            [f"{side} {there.colour} {there.shape}" for side, there in neighbours(scene, thing)],
        )
        for thing in _in_order(scene)
    )


def by_height(scene: Scene) -> str:
    """Bars from the tallest, with their heights."""
    assert scene.chart
    base, order = scene.chart.base, sorted(scene.chart.bars, key=lambda bar: bar.top)
    return ", ".join(f"{bar.label.text} {round((base - bar.top) / STEP)}" for bar in order)


def neighbours(scene: Scene, thing: Thing) -> Iterator[tuple[str, Thing]]:
    """What is the only thing on a side of another, in its row or column. Lines may lie between rows."""
    row, column = thing.cell
    for side, (down, across) in SIDES.items():
        if down and scene.lines:
            continue
        there = [
            other
            for other in scene.things
            if (r := other.cell[0] - row) * down + (c := other.cell[1] - column) * across > 0
            and (c == 0 if down else r == 0)
        ]
        if len(there) == 1:
            yield side, there[0]


def in_cells(scene: Scene) -> dict[tuple[int, int], str]:
    """What is in each cell that holds something; letters hide what is behind them."""
    seen = {thing.cell: f"{thing.size} {thing.colour} {thing.shape}" for thing in scene.things}
    if scene.sign:
        seen[scene.sign.cell] = f"{scene.sign.kind} sign"
    for bar in scene.chart.bars if scene.chart else ():
        seen[bar.cell] = f"{seen[bar.cell]} bar" if bar.cell in seen else "bar"
    written: defaultdict[tuple[int, int], str] = defaultdict(str)
    for line in scene.spelled():
        for letter, x in line.letters():
            written[cell_at(x, line.y)] += letter
    return seen | written


def _sorted(told: Iterator[tuple[str, list[str]]]) -> str:
    return ", ".join(f"{key}:{''.join(f' {what}' for what in found)}" for key, found in told)


def _from(options: Sequence[str], first: int) -> Sequence[str]:
    return (*options[first:], *options[:first])


def _in_order(scene: Scene) -> list[Thing]:
    return sorted(scene.things, key=lambda thing: thing.cell)


def _cell(cell: tuple[int, int]) -> str:
    return f"{cell[0] + 1}{cell[1] + 1}"
