"""The built-in model's recipe: a fresh model, and stages about drawn scenes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastvlm_mlx.config import ImageConfig, TextConfig, VisionConfig
from fastvlm_mlx.errors import ConfigError
from fastvlm_mlx.train import recipe as recipes

BUILT_IN = Path(__file__).parent / "recipe.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(recipes.Stage):
    """`batch` pictures a step, `questions` about each."""

    # cells: what is where, by cell. symbols: questions about cells that are told in place of seen. projector:
    # from what is seen to what would have been told. answers: questions about pictures.
    kind: Literal["cells", "symbols", "projector", "answers"]
    questions: int = 6
    mixture: dict[str, float] = field(default_factory=dict)  # what is asked -> weight; empty is all alike
    statistics: Literal["stored", "batch"] = "stored"  # BatchNorm's
    pages: int = 0  # how many of a batch's pictures are full of letters
    alike: bool = False  # every kind of scene as often as any other
    disguise: float = 0.0  # of the scenes, in how many names are made up (see `disguise`); of kind symbols

    def __post_init__(self) -> None:
        recipes.Stage.__post_init__(self)
        if self.questions < 1:
            raise ConfigError(f"stage {self.name!r}: questions must be positive")
        if not 0 <= self.pages <= (self.batch if self.kind == "cells" else 0):
            raise ConfigError(f"stage {self.name!r}: pages are of kind 'cells', at most the batch")
        if not 0 <= self.disguise <= (1 if self.kind == "symbols" else 0):
            raise ConfigError(f"stage {self.name!r}: disguise is of kind 'symbols', from 0 to 1")
        if not all(weight >= 0 for weight in self.mixture.values()):
            raise ConfigError(f"stage {self.name!r}: the mixture's weights cannot be negative")


@dataclass(frozen=True, slots=True)
class Model:
    """A fresh model's sizes."""

    vision: VisionConfig
    text: TextConfig
    image: ImageConfig
    layer_scale: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Recipe(recipes.Plan):
    stages: tuple[Stage, ...]
    model: Model


def read(path: Path = BUILT_IN) -> Recipe:
    return recipes.parsed(Recipe, path)
