"""The independent test: its answers are true, its libraries agree, and it shares nothing with training."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tiny import elsewhere
from tiny.elsewhere import CANT_TELL, CATEGORIES, COLORS, Bars, Shape, Sheet, Text, sheet_of
from tiny.words import TEST_WORDS

SHEETS = [
    (category, *sheet_of(category, number, np.random.default_rng([7, place, number])))
    for place, category in enumerate(CATEGORIES)
    for number in range(40)
]
SHAPES = tuple(
    Shape(name, "red", "#ff0000", 60 + 130 * (i % 2), 60 + 130 * (i // 2), 40)
    for i, name in enumerate(("circle", "square", "diamond", "star"))
)


def test_nothing_of_training_draws_it() -> None:
    for name in ("elsewhere", "canvases"):
        tree = ast.parse((Path(elsewhere.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
        own = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
        assert own <= {"words", "elsewhere", "canvases"}


def test_answers_are_true() -> None:
    for category, sheet, asked in SHEETS:
        names = [shape.name for shape in sheet.shapes]
        question = asked.question.lower()
        if category == "color":
            (one,) = [shape for shape in sheet.shapes if shape.name in question]
            assert one.color in asked.answers
            assert one.css in COLORS[one.color]
        if category == "count":
            (kind,) = [name for name in (*elsewhere.SHAPES, "shape") if f"{name}s" in question]
            assert asked.answers[0] == str(len(names) if kind == "shape" else names.count(kind))
        if category in ("yes", "no"):
            found = any(
                shape.name in question
                and (shape.color in question or not any(color in question for color in COLORS))
                for shape in sheet.shapes
            )
            assert asked.answers == ("yes" if found else "no",)
        if category == "tallest bar":
            assert sheet.bars
            order = sorted(zip(sheet.bars.heights, sheet.bars.labels, strict=True))
            assert asked.answers == (order[-1][1],)
            assert order[-1][0] > 1.1 * order[-2][0]
        if category == "words":
            assert asked.answers[0].upper() in TEST_WORDS
            assert sheet.texts[0].text == asked.answers[0]
        assert (asked.answers == (CANT_TELL,)) == (category == "unknown")


def test_things_lie_apart_and_inside() -> None:
    for _, sheet, _ in SHEETS:
        for i, one in enumerate(sheet.shapes):
            assert one.half < one.y < sheet.height - one.half
            assert one.wide < one.x < sheet.width - one.wide
            for other in sheet.shapes[:i]:
                clear = max(one.half, one.wide) + max(other.half, other.wide)
                assert np.hypot(one.x - other.x, one.y - other.y) > clear


def test_every_library_draws_the_same_things(tmp_path: Path) -> None:
    for needed in ("cairo", "matplotlib", "playwright"):
        pytest.importorskip(needed)
    if not shutil.which("chromium"):
        pytest.skip("needs chromium")
    from tiny.canvases import drawers

    shapes = Sheet(250, 250, "#ffffff", SHAPES)
    written = Sheet(250, 250, "#ffffff", texts=(Text("STONE", "#0000ff", 60, 0, 100),))
    bars = Sheet(250, 250, "#ffffff", bars=Bars(("A", "B"), (20.0, 90.0), ("#008000", "#008000"), ""))
    with drawers() as libraries:
        assert len(libraries) == 3
        for draw in libraries:
            pixels = np.asarray(draw(shapes))
            assert pixels.shape == (250, 250, 3)
            for shape in SHAPES:
                assert (pixels[int(shape.y), int(shape.x)] == (255, 0, 0)).all(), shape.name
            assert (pixels[125, 125] == 255).all()
            red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
            assert red.sum() == pytest.approx(40**2 * (np.pi + 4 + 1.6 + 1.24), rel=0.06)
            ink = np.asarray(draw(written))[..., 0] < 100
            rows, columns = np.nonzero(ink)
            assert abs(rows.mean() - 100) < 12
            assert abs(columns.mean() - 125) < 12
            green = np.asarray(draw(bars))[..., 0] < 60
            left, right = green[:, :125].sum(), green[:, 125:].sum()
            assert right > 2.5 * left > 0


def test_a_folder_is_what_eval_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    from PIL import Image

    canvases = pytest.importorskip("tiny.canvases")
    plain = (lambda sheet: Image.new("RGB", (sheet.width, sheet.height)),)
    monkeypatch.setattr(canvases, "drawers", lambda: nullcontext(plain))
    elsewhere.write(tmp_path / "out", 2, 1)
    rows = [json.loads(line) for line in (tmp_path / "out" / "data.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(CATEGORIES)
    assert all((tmp_path / "out" / row["image"]).is_file() for row in rows)
