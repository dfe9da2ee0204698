"""What steps are judged by, against plain definitions."""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from tiny import composing, losses, scenes
from tiny.losses import _anywhere

WIDTH = 5


def test_symbols_are_the_sum_of_what_a_cell_shows() -> None:
    raw = losses.cell_heads(8, 4, WIDTH, mx.random.key(0))
    cells = scenes.cells(composing.scene(1, 4, "train"))
    targets = {name: getattr(cells, name).reshape(1, 16, slots) for name, (slots, _) in scenes.HEADS.items()}
    found = np.array(losses.symbols(raw, {name: mx.array(a.astype(np.int32)) for name, a in targets.items()}))
    wanted = np.zeros((16, WIDTH), np.float32)
    for name, (slots, classes) in scenes.HEADS.items():
        table = np.array(raw[f"symbols.{name}.weight"]).reshape(slots, classes, WIDTH)
        for cell in range(16):
            for slot in range(slots):
                if value := targets[name][0, cell, slot]:
                    wanted[cell] += table[slot, value]
    assert np.allclose(found, wanted, atol=1e-6)
    assert len({row.tobytes() for row in found}) == 16  # rows and columns alone tell cells apart


def test_a_class_told_at_one_place_is_told_of_its_slot_alone() -> None:
    logits = np.full((1, 16, 16, 3), -9.0, np.float32)
    logits[0, 5, 9, 1] = 9  # the second row of cells, the third column, its first slot
    told = np.array(_anywhere(mx.array(logits), (4, 4), 2)).argmax(-1)
    assert told.shape == (1, 4, 4, 2)
    assert told[0, 1, 2, 0] == 2
    assert np.count_nonzero(told) == 1


def test_few_cells_that_show_something_count_as_much_as_all_that_are_empty() -> None:
    raw = losses.cell_heads(8, 4, WIDTH, mx.random.key(0))
    made = (composing.scene(1, number, "train") for number in range(99))
    cells = scenes.cells(next(scene for scene in made if len(scene.things) == 3))
    targets = {
        name: mx.array(getattr(cells, name).reshape(1, 16, slots).astype(np.int32))
        for name, (slots, _) in scenes.HEADS.items()
    }
    wanted = losses.symbols(raw, targets)
    shown = (targets["shape"] > 0).reshape(16, 1)
    assert shown.sum() == 3
    for kind, measures in ((shown, {"explained": 0, "empty": 1}), (~shown, {"explained": 1, "empty": 0})):
        middle = (wanted * kind).sum(0) / kind.sum()
        said = mx.where(kind, middle, wanted)
        model = SimpleNamespace(projector=lambda _, said=said: said)
        loss, found = losses.projector(model, mx.zeros((1, 4, 4, 8)), raw, targets)  # type: ignore[arg-type]
        assert loss.item() == pytest.approx(1, abs=1e-5)
        assert {name: value.item() for name, value in found.items()} == pytest.approx(measures, abs=1e-5)
