"""Recipes are read strictly."""

from pathlib import Path

import pytest

from fastvlm_mlx import ConfigError
from fastvlm_mlx.train import recipe as recipes

GOOD = """
name = "x"
[[stages]]
name = "first"
kind = "answers"
steps = 10
rate = 1e-3
train = ["language"]
"""


def test_the_built_in_recipe_is_found_by_name() -> None:
    found = recipes.find("tiny")
    assert found.name == "fastvlm-tiny"
    assert found.model is not None
    assert found.stages[0].kind == "cells"


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("rate = 1e-3", "rat = 1e-3", "unknown key stages.0..'rat'"),
        ("rate = 1e-3", "", "stages.0..'rate' is missing"),
        ("steps = 10", 'steps = "ten"', "stages.0..steps is 'ten', not of the kind int"),
        ("steps = 10", "steps = 0", "first.*must be positive"),
        ('kind = "answers"', 'kind = "poems"', "'poems', not of the kind 'cells' or 'symbols'"),
        ("steps = 10", "steps = 10\npages = 2", "first.*pages are of kind 'cells'"),
        ("steps = 10", "steps = 10\nmixture = { count = -1.0 }", "first.*cannot be negative"),
        ('name = "x"', 'name = "x', "not TOML"),
    ],
    ids=[
        "unknown key",
        "missing key",
        "wrong type",
        "no steps",
        "unknown kind",
        "pages",
        "weights",
        "not TOML",
    ],
)
def test_a_bad_recipe_is_one_line_that_names_the_place(
    tmp_path: Path, old: str, new: str, names: str
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=names) as caught:
        recipes.find(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml.*cannot be read"):
        recipes.find(str(tmp_path / "missing.toml"))
