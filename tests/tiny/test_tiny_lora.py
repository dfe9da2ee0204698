"""Two hundred examples of a question that the built-in model never heard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import fastvlm_mlx
from fastvlm_mlx.train import recipe as recipes
from fastvlm_mlx.train.finetune import finetune
from tiny import composing
from tiny.drawing import draw

QUESTION = "Reading row by row, which shape comes first?"
RECIPE = """
name = "first"
seed = 5
log_every = 10
[start]
model = "tiny"
[data]
path = "train.jsonl"
[lora]
rank = 8
alpha = 16
fuse = true
[[stages]]
name = "learn"
steps = 120
batch = 16
rate = 2e-3
"""


def write(folder: Path, name: str, count: int, seed: int) -> list[dict[str, str]]:
    """`count` scenes with things in them, and what comes first in each."""
    rows: list[dict[str, str]] = []
    index = 0
    while len(rows) < count:
        scene = composing.scene(seed, index, "train")
        index += 1
        if scene.kind != "objects":
            continue
        picture = f"{name}-{len(rows)}.png"
        Image.fromarray(draw(scene)).save(folder / picture)
        first = min(scene.things, key=lambda thing: thing.cell)
        rows.append({"image": picture, "question": QUESTION, "answer": f"{first.colour} {first.shape}"})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def share_right(vlm: fastvlm_mlx.VLM, folder: Path, rows: list[dict[str, str]]) -> float:
    prompts = (vlm.prompt(row["question"], [folder / row["image"]]) for row in rows)
    said = [answer.text for answer in vlm.answers(prompts, max_tokens=16)]
    return sum(text == row["answer"] for text, row in zip(said, rows, strict=True)) / len(rows)


@pytest.mark.slow
def test_an_adapter_learns_a_new_question(tmp_path: Path) -> None:
    write(tmp_path, "train", 200, 31)
    rows = write(tmp_path, "test", 60, 32)
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    before = share_right(fastvlm_mlx.load("tiny"), tmp_path, rows)
    finetune(recipes.read(tmp_path / "recipe.toml"), tmp_path / "run")
    beside = fastvlm_mlx.load("tiny", adapter=tmp_path / "run" / "adapter")
    after = share_right(beside, tmp_path, rows)
    assert after > before + 0.5, (before, after)
    assert share_right(fastvlm_mlx.load(tmp_path / "run" / "fused"), tmp_path, rows) == pytest.approx(
        after, abs=0.05
    )
