"""What tests of fine-tuning share: a few pictures with conversations about them, and recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = {"red.png": (220, 30, 30), "blue.png": (20, 40, 220), "green.png": (30, 200, 40)}
ROWS: list[dict[str, Any]] = [
    {"image": "red.png", "question": "Which colour?", "answer": "red"},
    {
        "image": "blue.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A blue picture."},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "yes"},
        ],
    },
    {
        "images": ["green.png", "red.png"],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "First <image>, then <image>: what changed?"},
            {"role": "assistant", "content": "the colour"},
        ],
    },
    {"images": [], "question": "Two and two?", "answer": "four"},
]
RECIPE = """
name = "mine"
seed = 3
save_every = {save_every}
log_every = {log_every}

[start]
model = "{model}"

[data]
path = "train.jsonl"
{more}
[[stages]]
name = "learn"
steps = {steps}
batch = 2
rate = {rate}
image_size = 64
train = {train}
"""
LORA = '[lora]\nrank = 4\nalpha = 8\ndropout = 0.1\npatterns = ["language\\\\.", "projector\\\\."]\n'


def rows(folder: Path, *given: Mapping[str, Any]) -> Path:
    """`train.jsonl`, and its pictures beside it."""
    for name, colour in COLOURS.items():
        Image.new("RGB", (80, 50), colour).save(folder / name)
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given or ROWS), encoding="utf-8")
    return path


def recipe(folder: Path, model: Path, more: str = "", **changes: Any) -> Path:
    told = {"steps": 4, "rate": 1e-2, "save_every": 1, "log_every": 1, "train": '[""]', **changes}
    path = folder / "mine.toml"
    path.write_text(RECIPE.format(model=model, more=more, **told), encoding="utf-8")
    return path
