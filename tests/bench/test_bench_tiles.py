"""`benchmarks/tiles.py`: what it compares is what docs/tiles.md says."""

from __future__ import annotations

import re
import sys

import pytest
import tiles
from checkpoints import GOLDEN

from fastvlm_mlx.bench.measure import SIDES
from fastvlm_mlx.inputs.tiling import ImageOptions, parse_grid

PAGE = (GOLDEN.parent.parent / "docs" / "tiles.md").read_text()


def test_the_small_model_is_measured_every_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tiles.py", "--small", "--size", "64", "--runs", "1"])
    tiles.main()
    told = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith("| ")][1:]
    assert [row[:2] for row in rows] == [
        ["64", "1"],
        *(["128", "4"], ["128 native", "2"], ["64 tiles 2x2", "5"]),
        *(["192", "9"], ["192 native", "6"], ["64 tiles 3x3", "10"]),
    ]
    assert all(float(number) > 0 for row in rows for number in row[2:])
    assert "a small model, random weights" in told


def test_tokens_on_the_page_are_those_that_are_read() -> None:
    found = re.findall(r"^\| (\w+) \| (\d+) \| (\d+x\d+)? ?\|.*\| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert len(found) == 11
    for mode, size, grid, tokens in found:
        reading = ImageOptions(int(size), mode, parse_grid(grid or None))
        assert reading.positions(*SIDES) == int(tokens.replace(",", "")), (mode, size, grid)
