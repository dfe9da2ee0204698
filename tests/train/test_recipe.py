"""Recipes are read strictly."""

from pathlib import Path

import pytest

from fastvlm_mlx import ConfigError
from fastvlm_mlx.train import recipe as recipes

GOOD = """
name = "x"
[start]
model = "tiny"
[data]
path = "train.jsonl"
[[stages]]
name = "first"
steps = 10
rate = 1e-3
train = ["language"]
"""

SECOND = """[[stages]]
name = "first"
steps = 5
rate = 1e-3
train = ["vision"]
[[stages]]"""


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("rate = 1e-3", "rat = 1e-3", "unknown key stages.0..'rat'"),
        ("rate = 1e-3", "", "stages.0..'rate' is missing"),
        ("steps = 10", 'steps = "ten"', "stages.0..steps is 'ten', not of the kind int"),
        ("steps = 10", "steps = 0", "first.*must be positive"),
        ('name = "x"', 'name = "x', "not TOML"),
        ("[[stages]]", SECOND, "stages 1 and 2 are both named 'first'"),
    ],
    ids=[
        "unknown key",
        "missing key",
        "wrong type",
        "no steps",
        "not TOML",
        "two stages of one name",
    ],
)
def test_a_bad_recipe_is_one_line_that_names_the_place(
    tmp_path: Path, old: str, new: str, names: str
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=names) as caught:
        recipes.read(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml.*cannot be read"):
        recipes.read(tmp_path / "missing.toml")
