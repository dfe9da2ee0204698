"""Generated scenes as batches."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fastvlm_mlx.train.batches import Share
from tiny import composing, drawing, questions, scenes, vocabulary
from tiny.recipe import Stage
from tiny.sources import Scenes, chosen

CELLS = Stage("cells", 10, 1e-3, kind="cells", batch=4)
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


def test_pages_come_first_and_have_letters_in_every_row() -> None:
    batch = SOURCE.batch(dataclasses.replace(CELLS, pages=2), 0, 0, Share())
    assert batch.pixels.shape == (4, 256, 256, 3)
    lettered = (batch.cells["glyphs"].reshape(4, 4, -1) > 0).any(-1)
    assert lettered[:2].all()
    assert not lettered[2:].all()


def test_kinds_come_alike_often_where_asked_for() -> None:
    many = dataclasses.replace(CELLS, batch=60)
    signs = [
        (SOURCE.batch(stage, 0, 0, Share()).cells["sign"] > 0).any((1, 2)).sum()
        for stage in (many, dataclasses.replace(many, alike=True))
    ]
    assert signs[1] > signs[0] + 3  # 12 are expected instead of 4


def test_symbols_are_questions_about_cells_without_their_pictures(tmp_path: Path) -> None:
    vocabulary.learn(["What is in every cell?"] * 2, 300, 256, tmp_path / "tokenizer")
    stage = Stage("symbols", 10, 1e-3, kind="symbols", batch=4, questions=2)
    batch = Scenes(7, tmp_path / "tokenizer").batch(stage, 0, 0, Share())
    assert not batch.pixels.size
    assert batch.cells["shape"].shape == (4, scenes.GRID**2, 1)
    assert sum(len(group.head_of) for group in batch.texts) == 8


def test_a_mixture_weighs_categories_and_kinds_within_them() -> None:
    rng = np.random.default_rng(0)
    several = (questions.ask(composing.scene(3, n, "train"), np.random.default_rng(1)) for n in range(99))
    asked = next(asked for asked in several if {"relation", ""} <= {one.kind for one in asked})
    stage = Stage("symbols", 1, 1e-3, kind="symbols", questions=400)

    def shares(mixture: dict[str, float]) -> Counter[str]:
        picked = chosen(asked, dataclasses.replace(stage, mixture=mixture), rng)
        return Counter(question.kind or question.category for question in picked)

    assert shares({"describe": 1.0}) == {"describe": 400}
    both = shares({"describe": 1.0, "relation": 3.0})
    assert both.keys() == {"describe", "relation"}
    assert both["relation"] == pytest.approx(300, abs=40)
    within = shares({"position": 1.0})
    assert within.keys() == {"position", "relation"}
    apart = shares({"position": 1.0, "relation": 0.0})
    assert apart.keys() == {"position"}


def test_every_kind_that_can_be_weighed_is_asked_for() -> None:
    scenes_of_all_kinds = [composing.scene(3, n, "train") for n in range(60)]
    asked = {
        one.kind for scene in scenes_of_all_kinds for one in questions.ask(scene, np.random.default_rng(1))
    }
    assert asked == {"", *questions.FINER}
