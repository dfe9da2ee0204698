"""Scenes as files: PNG pictures and a `data.jsonl` of questions about them.

python -m tiny.scenes held-out
fastvlm-mlx eval tiny held-out/data.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fastvlm_mlx.files.atomic import new_directory
from fastvlm_mlx.terminal import progress

from .composing import scene
from .drawing import draw
from .questions import TRAINING_ONLY, Question, ask
from .scenes import SPLITS, Split

_ASKING = 1  # sets the stream of questions apart from that of scenes


def write(
    out: Path,
    count: int,
    seed: int,
    split: Split,
    per_scene: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Counter[str]:
    """Write `count` pictures with `per_scene` questions each; say how many of each category there are."""
    asked: Counter[str] = Counter()
    with new_directory(out) as folder, (folder / "data.jsonl").open("w", encoding="utf-8") as rows:
        (folder / "pictures").mkdir()
        for index in range(count):
            name = f"pictures/{index + 1:05d}.png"
            shown = scene(seed, index, split)
            Image.fromarray(draw(shown)).save(folder / name)
            rng = np.random.default_rng([seed, SPLITS.index(split), index, _ASKING])
            left_out = TRAINING_ONLY if split == "test" else frozenset()
            options = [question for question in ask(shown, rng) if question.category not in left_out]
            for number, question in enumerate(choose(options, asked, per_scene, rng), start=1):
                row = {
                    "id": f"{index + 1:05d}-{number}",
                    "image": name,
                    "question": question.text,
                    "answer": question.answer,
                    "category": question.category,
                }
                rows.write(json.dumps(row, ensure_ascii=False) + "\n")
            progress(index + 1, count)
    return asked


def choose(
    options: list[Question], asked: Counter[str], most: int, rng: np.random.Generator
) -> list[Question]:
    """Up to `most` of the questions, each from the category asked least so far; `asked` is counted up."""
    left = [options[int(i)] for i in rng.permutation(len(options))]
    chosen: list[Question] = []
    while left and len(chosen) < most:
        question = min(left, key=lambda one: asked[one.category])
        left = [one for one in left if one.text != question.text]
        asked[question.category] += 1
        chosen.append(question)
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tiny.scenes",
        description="Draw pictures with questions and answers that the built-in model is measured with.",
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="a new folder for pictures and data.jsonl")
    parser.add_argument("--count", type=int, default=2000, help="number of pictures")
    parser.add_argument("--questions", type=int, default=3, help="maximum number of questions about each")
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="test: words and pairs that training never shows"
    )
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args(arguments)
    with progress.bar("drawing", "pictures") as advance:
        asked = write(options.output, options.count, options.seed, options.split, options.questions, advance)
    print(f"{options.output}: {options.count} pictures, {sum(asked.values())} questions")
    for category, number in sorted(asked.items()):
        print(f"  {category:<10} {number}")
