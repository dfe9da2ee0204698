"""An independent test: pictures that other libraries draw, with questions as people type them.

    python -m tiny.elsewhere elsewhere
    fastvlm-mlx eval tiny elsewhere/data.jsonl

matplotlib, cairo and a browser draw here. Training draws with Pillow and numpy alone and shares no code with
this test. Words and numbers are those that training never shows.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastvlm_mlx.files.atomic import new_directory

from .words import TEST_WORDS

SEED, COUNT = 4711, 60
CANT_TELL = "I can't tell."
CATEGORIES = ("color", "count", "shape", "yes", "no", "words", "numbers", "tallest bar", "unknown")
COLORS: dict[str, tuple[str, ...]] = {  # in the spelling of CSS, which all three libraries read
    "red": ("#ff0000", "#d62728", "#cc2222"),
    "orange": ("#ffa500", "#ff7f0e"),
    "yellow": ("#ffff00", "#f5d90a", "#ffd700"),
    "green": ("#008000", "#2ca02c", "#22aa44"),
    "blue": ("#0000ff", "#1f77b4", "#2255dd"),
    "purple": ("#800080", "#7a3db8"),
    "pink": ("#ff69b4", "#ffb6c1"),
    "brown": ("#8b4513", "#8c564b"),
    "black": ("#000000", "#1a1a1a"),
    "gray": ("#808080", "#7f7f7f"),
    "white": ("#ffffff",),
}
SHAPES = ("circle", "square", "triangle", "rectangle", "star", "diamond", "oval", "heart")
GROUNDS = ("#ffffff",) * 5 + ("#f4f1e8", "#eef3fb", "#222831", "#fff7cc", "#dddddd", "#0b3d2e", "#e8d5f0")
UNKNOWNS = ("tree", "car", "fish", "cup", "face", "key", "umbrella", "spiral")
WORDINGS: dict[str, tuple[str, ...]] = {
    "color": (
        "What color is the {}?",
        "Which color is the {}?",
        "what colour is the {}",
        "What's the color of the {}?",
    ),
    "count": (
        "How many {} are there?",
        "How many {} do you see?",
        "Count the {}.",
        "how many {} are in the image",
    ),
    "shape": ("What is this?", "What shape is this?", "What shape is it?", "which shape is shown?"),
    "yes or no": ("Is there a {}?", "Do you see a {}?", "Is there a {} in this picture?"),
    "words": ("Read the text.", "What does it say?", "What does the text say?", "what word is this?"),
    "numbers": ("What number is this?", "Read the number.", "What number is shown?"),
    "tallest bar": ("Which bar is the tallest?", "Which bar is the highest?", "What is the tallest bar?"),
    "unknown": ("What is this?", "What do you see?", "What is shown in this picture?"),
    "no text": ("What does the text say?", "Read the text."),
    "no bars": ("Which bar is the tallest?",),
}


@dataclass(frozen=True)
class Shape:
    name: str
    color: str
    css: str
    x: float
    y: float
    half: float  # of its height
    line: str = ""  # an outline's color

    @property
    def path(self) -> list[tuple[float, float]]:
        """Corners; a circle and an oval have none."""
        h = self.half
        corners = {
            "square": [(-h, -h), (h, -h), (h, h), (-h, h)],
            "rectangle": [(-1.9 * h, -h), (1.9 * h, -h), (1.9 * h, h), (-1.9 * h, h)],
            "triangle": [(0, -h), (1.1 * h, h), (-1.1 * h, h)],
            "diamond": [(0, -h), (0.8 * h, 0), (0, h), (-0.8 * h, 0)],
            "star": [
                (
                    h * (1, 0.42)[i % 2] * math.sin(i * math.pi / 5),
                    -h * (1, 0.42)[i % 2] * math.cos(i * math.pi / 5),
                )
                for i in range(10)
            ],
            "heart": [
                (
                    h * math.sin(t) ** 3 * 1.05,
                    -h
                    * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                    / 15,
                )
                for t in (i * math.pi / 40 for i in range(80))
            ],
        }.get(self.name, [])
        return [(self.x + x, self.y + y) for x, y in corners]

    @property
    def wide(self) -> float:
        return self.half * {"rectangle": 1.9, "oval": 1.6, "triangle": 1.1}.get(self.name, 1.05)


@dataclass(frozen=True)
class Text:
    text: str
    css: str
    size: float  # px
    font: int
    y: float


@dataclass(frozen=True)
class Bars:
    labels: tuple[str, ...]
    heights: tuple[float, ...]
    css: tuple[str, ...]
    title: str


@dataclass(frozen=True)
class Sheet:
    """What a picture shows. Every library draws every sheet."""

    width: int
    height: int
    ground: str
    shapes: tuple[Shape, ...] = ()
    texts: tuple[Text, ...] = ()
    bars: Bars | None = None
    unknown: str = ""


@dataclass(frozen=True)
class Asked:
    category: str
    question: str
    answers: tuple[str, ...]


# --- what is drawn and asked ---


def sheet_of(category: str, number: int, rng: np.random.Generator) -> tuple[Sheet, Asked]:
    width = int(rng.choice([256, 320, 400, 512, 640]))
    height = int(width * rng.choice([1, 1, 1, 0.75, 0.66, 1.25]))
    ground = _pick(rng, GROUNDS)
    sheet = Sheet(width, height, ground)
    if category in ("words", "numbers"):
        text: str = _pick(rng, TEST_WORDS) if category == "words" else str(7 * int(rng.integers(1, 1400)) + 3)
        text = _pick(rng, (text, text.lower(), text.capitalize()))
        size = min(height * rng.uniform(0.12, 0.45), 1.45 * width * rng.uniform(0.6, 0.9) / len(text))
        _, css = _color(rng, ground)
        drawn = Text(text, css, float(size), number, float(height * rng.uniform(0.35, 0.7)))
        sheet = Sheet(width, height, ground, texts=(drawn,))
        return sheet, Asked(category, _ask(rng, category), (text,))
    if category == "tallest bar":
        bars = _bars(rng)
        tallest = bars.labels[int(np.argmax(bars.heights))]
        return Sheet(width, height, "#ffffff", bars=bars), Asked(category, _ask(rng, category), (tallest,))
    if category == "unknown":
        kind = number % 4
        if kind == 0:
            shapes = _shapes(rng, sheet, 1)
            return Sheet(width, height, ground, shapes), Asked(category, _ask(rng, "no text"), (CANT_TELL,))
        if kind == 1 and number % 8 == 1:
            shapes = _shapes(rng, sheet, 2)
            return Sheet(width, height, ground, shapes), Asked(category, _ask(rng, "no bars"), (CANT_TELL,))
        unknown = "photo" if kind == 3 else _pick(rng, UNKNOWNS)
        return Sheet(width, height, ground, unknown=unknown), Asked(
            category, _ask(rng, category), (CANT_TELL,)
        )
    count = (
        1
        if category == "shape"
        else int(rng.integers(1, 6))
        if category == "count"
        else int(rng.integers(1, 4))
    )
    shapes = _shapes(rng, sheet, count)
    one = _pick(rng, shapes)
    sheet = Sheet(width, height, ground, shapes)
    if category == "shape":
        full = f"{one.color} {one.name}"
        answers = (one.name, f"a {one.name}", f"a {full}", f"an {full}", full)
        return sheet, Asked(category, _ask(rng, category), answers)
    if category == "color":
        alone = [shape for shape in shapes if sum(other.name == shape.name for other in shapes) == 1]
        if not alone:
            return sheet_of(category, number, rng)
        one = _pick(rng, alone)
        spelled = (one.color, "grey") if one.color == "gray" else (one.color,)
        return sheet, Asked(category, _ask(rng, category, one.name), spelled)
    if category == "count":
        of_all = rng.random() < 0.4
        name = "shape" if of_all else one.name
        total = len(shapes) if of_all else sum(shape.name == name for shape in shapes)
        return sheet, Asked(category, _ask(rng, category, f"{name}s"), (str(total), _NUMBERS[total]))
    there = {shape.name for shape in shapes}, {(shape.color, shape.name) for shape in shapes}
    if category == "yes":
        asked = one.name if rng.random() < 0.5 else f"{one.color} {one.name}"
        return sheet, Asked(category, _ask(rng, "yes or no", asked), ("yes",))
    while True:
        name, color = _pick(rng, SHAPES), _pick(rng, tuple(COLORS))
        if rng.random() < 0.5 and name not in there[0]:
            return sheet, Asked(category, _ask(rng, "yes or no", name), ("no",))
        if (color, name) not in there[1]:
            return sheet, Asked(category, _ask(rng, "yes or no", f"{color} {name}"), ("no",))


_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _ask(rng: np.random.Generator, name: str, what: str = "") -> str:
    text: str = _pick(rng, WORDINGS[name]).format(what)
    return text.replace(" a oval", " an oval").replace(" a orange", " an orange")


def _rgb(css: str) -> tuple[int, int, int]:
    red, green, blue = (int(css[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


def _color(rng: np.random.Generator, ground: str) -> tuple[str, str]:
    while True:
        name = _pick(rng, tuple(COLORS))
        css = _pick(rng, COLORS[name])
        if math.dist(_rgb(css), _rgb(ground)) > 110:
            return name, css


def _shapes(rng: np.random.Generator, sheet: Sheet, count: int) -> tuple[Shape, ...]:
    """Apart from each other; 11% to 60% of the shorter side, fewer being larger."""
    short = min(sheet.width, sheet.height)
    found: list[Shape] = []
    names = [_pick(rng, SHAPES) for _ in range(count)]
    if rng.random() < 0.4:
        names = [_pick(rng, names[:2]) for _ in names]
    while len(found) < count:
        name, css = _color(rng, sheet.ground)
        half = short * float(rng.uniform(0.055, 0.3 if count == 1 else 0.17))
        shape = Shape(names[len(found)], name, css, 0, 0, half)
        x = rng.uniform(shape.wide + 2, max(shape.wide + 3, sheet.width - shape.wide - 2))
        y = rng.uniform(half + 2, sheet.height - half - 2)
        line = "#000000" if rng.random() < 0.2 and name != "black" and sheet.ground != "#222831" else ""
        shape = Shape(shape.name, name, css, float(x), float(y), half, line)
        fits = shape.wide * 2 + 4 < sheet.width
        if fits and all(
            math.hypot(shape.x - other.x, shape.y - other.y)
            > max(shape.wide, half) + max(other.wide, other.half)
            for other in found
        ):
            found.append(shape)
    return tuple(found)


def _bars(rng: np.random.Generator) -> Bars:
    count = int(rng.integers(3, 6))
    if rng.random() < 0.5:
        labels = [chr(ord("A") + i) for i in range(count)]
    else:
        short = [word for word in TEST_WORDS if len(word) <= 5]
        labels = [short[int(i)].capitalize() for i in rng.permutation(len(short))[:count]]
    order = np.sort(rng.uniform(10, 100, count))
    order[-1] = max(order[-1], order[-2] * 1.12)
    heights = rng.permutation(order)
    names = list(COLORS)[:8]
    one = _pick(rng, COLORS[_pick(rng, names)])
    several = rng.random() < 0.4
    css = tuple(_pick(rng, COLORS[_pick(rng, names)]) if several else one for _ in range(count))
    return Bars(tuple(labels), tuple(heights.tolist()), css, _pick(rng, ("", "Sales", "Results by group")))


def write(out: Path, count: int, seed: int) -> Counter[str]:
    """`count` pictures of every category, each by one of the three libraries in turn."""
    from .canvases import drawers

    asked: Counter[str] = Counter()
    with (
        new_directory(out) as folder,
        drawers() as draw,
        (folder / "data.jsonl").open("w", encoding="utf-8") as rows,
    ):
        (folder / "pictures").mkdir()
        for category in CATEGORIES:
            for number in range(count):
                rng = np.random.default_rng([seed, CATEGORIES.index(category), number])
                sheet, question = sheet_of(category, number, rng)
                name = f"pictures/{category.replace(' ', '-')}-{number:03}.png"
                draw[number % len(draw)](sheet).save(folder / name)
                row = {
                    "id": f"{category}-{number:03}",
                    "image": name,
                    "question": question.question,
                    "answers": list(question.answers),
                    "category": category,
                }
                rows.write(json.dumps(row) + "\n")
                asked[category] += 1
    return asked


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tiny.elsewhere", description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUT", help="a new folder for pictures and data.jsonl")
    parser.add_argument("--count", type=int, default=COUNT, help="pictures of each category")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    asked = write(options.output, options.count, options.seed)
    print(f"{options.output}: {sum(asked.values())} questions")


if __name__ == "__main__":
    main()
