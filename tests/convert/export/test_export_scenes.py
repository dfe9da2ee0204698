"""An export says what its source says, picture after picture."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

import fastvlm_mlx
from fastvlm_mlx.convert.export.swift import export
from fastvlm_mlx.evaluate import data as datasets
from fastvlm_mlx.weights import hub
from tiny import album

PICTURES = 200


@pytest.mark.slow
@pytest.mark.parametrize("name", hub.BUILT_IN)
def test_an_export_gives_the_same_answers_to_held_out_scenes(name: str, tmp_path: Path) -> None:
    album.write(tmp_path / "scenes", PICTURES, 2026, "test", 1)
    rows = datasets.read(tmp_path / "scenes" / "data.jsonl").rows
    assert len(rows) == PICTURES

    def said(directory: Path) -> list[tuple[int, ...]]:
        vlm = fastvlm_mlx.load(directory, dtype=mx.float16)
        asked = (vlm.prompt(row.question, images=row.pictures) for row in rows)
        return [answer.ids for answer in vlm.answers(asked, batch=20, max_tokens=64)]

    source = hub.BUILT_IN[name]
    bits = 4 if name.endswith("4bit") else None
    assert said(export(source, tmp_path / "out", bits=bits).destination) == said(source)
