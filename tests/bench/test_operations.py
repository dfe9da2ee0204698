"""`benchmarks/operations.py`: it counts what a graph holds, and ours holds less than mlx-vlm's."""

from __future__ import annotations

import peers
import pytest
from checkpoints import GOLDEN
from command import PYTHON, completed

BENCHMARK = GOLDEN.parent.parent / "benchmarks" / "operations.py"

KNOWN = """
import operations, mlx.core as mx, mlx.nn as nn

class Known(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.scale = nn.Linear(8, 16), mx.ones((16,))
        self.norm = nn.RMSNorm(16)

    def __call__(self, x):
        return self.norm(nn.gelu(self.first(x)) * self.scale)

model = Known()
print(operations.work(model, mx.float16, model, mx.zeros((4, 8), mx.float16)))
"""


def test_a_known_graph_is_counted() -> None:
    ran = completed((*PYTHON, "-c", KNOWN), PYTHONPATH=str(BENCHMARK.parent))
    assert ran.code == 0, ran.err
    wide, row = 2 * 4 * 16, 2 * 16  # bytes
    moved = (2 * 4 * 8 + 2 * 8 * 16 + row + wide) + (wide + wide) + (wide + row + wide) + (wide + row + wide)
    # views: the matrix turned, the bias and the scale spread over rows
    assert ran.out.strip() == f"Work(operations=4, views=3, moved={moved})"


@pytest.mark.skipif(not peers.installed("mlx_vlm"), reason="pip install --no-deps mlx-vlm mlx-lm")
def test_ours_are_fewer_than_mlx_vlms() -> None:
    ran = completed((*PYTHON, BENCHMARK), "--size", 64)
    assert ran.code == 0, ran.err
    rows = [line.strip("| ").split(" | ") for line in ran.out.splitlines() if line.startswith("| ")][1:]
    share = {row[0]: float(row[3].rstrip("%")) for row in rows}
    assert share["encode 64 px, operations"] <= 60
    assert share["decode one token, operations"] <= 60
    assert share["decode one token, views"] < 100
