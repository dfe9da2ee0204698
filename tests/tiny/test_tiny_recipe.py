"""The recipe of the built-in model, and what drawn scenes ask of any."""

from __future__ import annotations

from pathlib import Path

import pytest
import speck

from fastvlm_mlx import ConfigError
from tiny import recipe as recipes
from tiny.train import run

GOOD = f"""name = "speck"
{speck.MODEL}
[[stages]]
name = "learn"
kind = "answers"
steps = 2
rate = 1e-3
"""


def test_the_built_in_recipe_is_whole() -> None:
    found = recipes.read()
    assert found.name == "fastvlm-tiny"
    assert found.stages[0].kind == "cells"


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('kind = "answers"', 'kind = "poems"', "'poems', not of the kind 'cells' or 'symbols'"),
        ("steps = 2", "steps = 2\npages = 2", "learn.*pages are of kind 'cells'"),
        ("steps = 2", "steps = 2\nmixture = { count = -1.0 }", "learn.*cannot be negative"),
        ("steps = 2", "steps = 0", "learn.*must be positive"),
        ("steps = 2", "steps = 2\nimage_size = 128", "learn.*one size; leave"),
        ("steps = 2", "steps = 2\nmixture = { colours = 1.0 }", "'colours'.*there are.*colour"),
        ("steps = 2", "steps = 2\nmixture = { sign = 1.0 }", "nothing to ask.*add one of describe"),
        ("[model.image]\nsize = 256", "[model.image]\nsize = 512", "drawn scenes.*size = 256"),
    ],
    ids=["kind", "pages", "weights", "steps", "size of a stage", "category", "nothing to ask", "size"],
)
def test_a_bad_one_is_one_line_and_changes_nothing(tmp_path: Path, old: str, new: str, names: str) -> None:
    file = tmp_path / "speck.toml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=names) as caught:
        run(recipes.read(file), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
