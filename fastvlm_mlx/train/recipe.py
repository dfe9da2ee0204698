"""A training run as data: a TOML file, parsed strictly into frozen values."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ..errors import ConfigError
from ..files.strict import parse
from ..models.lora import LoRASettings


@dataclass(frozen=True, slots=True)
class Stage:
    """One learning rate schedule. Only tensors that match `train` move."""

    name: str
    steps: int
    rate: float  # the highest learning rate, after the warm-up
    train: tuple[str, ...] = ("",)  # patterns of tensor names; "" matches all
    batch: int = 32  # conversations in a step
    warmup: float = 0.03  # of all steps
    last_rate: float = 0.02  # of the highest, at the end of the cosine
    weight_decay: float = 0.02
    clip: float = 1.0
    image_size: int = 0  # 0: the model's

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or not self.rate > 0:
            raise ConfigError(f"stage {self.name!r}: steps, batch and rate must be positive")


@dataclass(frozen=True, slots=True)
class Start:
    """A model to fine-tune."""

    model: str  # a directory (from the recipe's own on), a hub id, or a short name
    revision: str | None = None
    dtype: str | None = None  # what it computes in; as stored, on the CPU float32


@dataclass(frozen=True, slots=True)
class Data:
    """What a model is fine-tuned on: `fastvlm_mlx.inputs.dataset` says in which forms."""

    path: str  # JSONL, from the recipe's directory on
    images: str | None = None  # where pictures' paths start from; where the file lies


@dataclass(frozen=True, slots=True)
class Lora(LoRASettings):
    """Train an adapter instead of the model's own weights."""

    fuse: bool = False  # write the model with the adapter added, too


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the trainer needs to know of any recipe."""

    name: str
    stages: tuple[Stage, ...]
    seed: int = 0
    save_every: int = 200
    log_every: int = 20

    def __post_init__(self) -> None:
        if min(self.save_every, self.log_every) < 1:
            raise ConfigError("save_every and log_every count steps; both must be positive")
        names = [stage.name for stage in self.stages]
        if twice := next((name for name in names if names.count(name) > 1), None):
            numbers = " and ".join(str(n) for n, name in enumerate(names, 1) if name == twice)
            raise ConfigError(
                f"stages {numbers} are both named {twice!r}, and the log tells stages by name; rename one"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe(Plan):
    start: Start
    data: Data
    lora: Lora | None = None


P = TypeVar("P", bound=Plan)


def read(path: Path) -> Recipe:
    recipe = parsed(Recipe, path)
    start, data, here = recipe.start, recipe.data, path.parent
    if (here / start.model).is_dir():
        start = replace(start, model=str((here / start.model).resolve()))
    images = None if data.images is None else str(here / data.images)
    return replace(recipe, start=start, data=Data(str(here / data.path), images))


def parsed(kind: type[P], path: Path) -> P:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a recipe, a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML ({error}); mend that line") from None
    return parse(kind, raw, path, repair="mend the recipe")
