"""Generated scenes as batches."""

import dataclasses
from pathlib import Path

import numpy as np

from fastvlm_mlx.train import composing, drawing, scenes
from fastvlm_mlx.train.recipe import Stage
from fastvlm_mlx.train.sources import Scenes, Share

CELLS = Stage("cells", "cells", 10, 1e-3, batch=4)
SOURCE = Scenes(7, Path("not needed for cells"))


def test_the_same_step_gives_the_same_batch_and_another_another() -> None:
    first, again, other = (SOURCE.batch(CELLS, 0, step, Share()) for step in (3, 3, 4))
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)
    assert not np.array_equal(first.pixels, SOURCE.batch(CELLS, 1, 3, Share()).pixels)


def test_shares_together_are_the_whole_batch() -> None:
    whole = SOURCE.batch(CELLS, 0, 0, Share()).pixels
    parts = [SOURCE.batch(CELLS, 0, 0, Share(rank, 2)).pixels for rank in range(2)]
    assert np.array_equal(whole[0::2], parts[0])
    assert np.array_equal(whole[1::2], parts[1])


def test_targets_are_those_of_the_cells_shown() -> None:
    batch = SOURCE.batch(CELLS, 0, 0, Share())
    scene = composing.scene(7000, 2, "train")
    assert np.array_equal(batch.pixels[2], drawing.draw(scene))
    for name, (slots, _) in scenes.HEADS.items():
        wanted = getattr(scenes.cells(scene), name).reshape(-1, slots)
        assert np.array_equal(batch.cells[name][2], wanted), name


def test_lines_are_rows_of_cells_with_letters_in_them() -> None:
    batch = SOURCE.batch(dataclasses.replace(CELLS, view="lines"), 0, 0, Share())
    assert batch.pixels.shape == (16, 64, 256, 3)
    assert (batch.cells["glyphs"] > 0).any((1, 2)).all()


def test_both_views_come_in_turn() -> None:
    both = dataclasses.replace(CELLS, view="both")
    sides = [SOURCE.batch(both, 0, step, Share()).pixels.shape[1] for step in range(4)]
    assert sides == [256, 64, 256, 64]
