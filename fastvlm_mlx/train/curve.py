"""A run's log as a picture: the loss on a logarithmic axis, stage after stage, and what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_SIZE, _MARGIN, _GAP = (1200, 840), 64, 48
_LINES = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f")
_KNOWN = ("stage", "step", "steps", "loss", "rate", "gradient", "s_per_step")
_Row = dict[str, Any]


def draw(log: Path, picture: Path) -> None:
    """Above the loss, below each measure from 0 to 1. An empty log draws nothing."""
    rows: list[_Row] = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if not rows:
        return
    canvas = Image.new("RGB", _SIZE, "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    width, height = _SIZE
    half = (height - 2 * _MARGIN - _GAP) // 2
    above = (_MARGIN, _MARGIN, width - _MARGIN, _MARGIN + half)
    below = (_MARGIN, _MARGIN + half + _GAP, width - _MARGIN, height - _MARGIN)
    done = _steps_before(rows)
    along = [done[row["stage"]] + row["step"] for row in rows]
    last = max(along)

    losses = [math.log10(max(row["loss"], 1e-6)) for row in rows]
    low, high = math.floor(min(losses)), math.ceil(max(losses) + 1e-9)
    marks = [(power, f"{10.0**power:g}") for power in range(low, high + 1)]
    _frame(pen, font, above, "loss", [(_share(power, low, high), text) for power, text in marks])
    _stages(pen, font, above, rows, done, last)
    for stage in done:
        points = [
            (x / last, _share(y, low, high))
            for x, y, row in zip(along, losses, rows, strict=True)
            if row["stage"] == stage
        ]
        _line(pen, above, points, _LINES[0])

    _frame(pen, font, below, "share that is right", [(n / 5, f"{n / 5:g}") for n in range(6)])
    names = list(dict.fromkeys(name for row in rows for name in row if name not in _KNOWN))
    for number, name in enumerate(names):
        colour = _LINES[number % len(_LINES)]
        pen.text((below[0] + 12 + 120 * number, below[3] + 28), name, fill=colour, font=font)
        for stage in done:
            points = [
                (x / last, row[name])
                for x, row in zip(along, rows, strict=True)
                if row["stage"] == stage and name in row
            ]
            _line(pen, below, points, colour)
    pen.text((above[0], above[3] + 6), f"0 to {last} steps", fill="#555555", font=font)
    partial = picture.with_suffix(".partial")
    canvas.save(partial, "PNG")
    partial.replace(picture)


def _steps_before(rows: Sequence[_Row]) -> dict[str, int]:
    """By stage, how many steps the former ones took."""
    lengths: dict[str, int] = {}
    for row in rows:
        lengths[row["stage"]] = row["step"]
    before, total = {}, 0
    for stage, length in lengths.items():
        before[stage], total = total, total + length
    return before


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


_Box = tuple[int, int, int, int]


def _at(box: _Box, x: float, y: float) -> tuple[float, float]:
    left, top, right, bottom = box
    return left + x * (right - left), bottom - y * (bottom - top)


def _frame(
    pen: ImageDraw.ImageDraw, font: Any, box: _Box, title: str, marks: Sequence[tuple[float, str]]
) -> None:
    pen.text((box[0], box[1] - 22), title, fill="black", font=font)
    for height, text in marks:
        pen.line([_at(box, 0, height), _at(box, 1, height)], fill="#dddddd")
        pen.text((8, _at(box, 0, height)[1] - 9), text, fill="#555555", font=font)
    pen.rectangle(box, outline="#999999")


def _stages(
    pen: ImageDraw.ImageDraw, font: Any, box: _Box, rows: Sequence[_Row], done: dict[str, int], last: int
) -> None:
    for stage, before in done.items():
        x, top = _at(box, before / last, 1)
        pen.line([(x, top), _at(box, before / last, 0)], fill="#999999")
        pen.text((x + 6, top + 4), stage, fill="#555555", font=font)


def _line(pen: ImageDraw.ImageDraw, box: _Box, points: Sequence[tuple[float, float]], colour: str) -> None:
    if len(points) > 1:
        pen.line([_at(box, x, y) for x, y in points], fill=colour, width=2)
