"""An export says what its source says, picture after picture."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import golden

import fastvlm_mlx
from fastvlm_mlx.convert.export_swift import export
from fastvlm_mlx.train import album

PICTURES = 200


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apple-train", "mlx-vlm-f32"])
def test_an_export_gives_the_same_answers_to_held_out_scenes(name: str, tmp_path: Path) -> None:
    album.write(tmp_path / "scenes", PICTURES, 2026, "test", 1)
    rows = [json.loads(line) for line in (tmp_path / "scenes" / "data.jsonl").read_text().splitlines()]
    assert len(rows) == PICTURES
    out = export(golden(name), tmp_path / "out").destination

    def said(directory: Path) -> list[tuple[int, ...]]:
        vlm = fastvlm_mlx.load(directory, dtype=mx.float16)
        asked = (vlm.prompt(row["question"], images=[tmp_path / "scenes" / row["image"]]) for row in rows)
        return [answer.ids for answer in vlm.answers(asked, batch=20, max_tokens=8)]

    assert said(out) == said(golden(name))
