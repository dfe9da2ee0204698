"""A training run as data: a TOML file, parsed strictly into frozen values."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..config import ImageConfig, TextConfig, VisionConfig
from ..errors import ConfigError
from ..lora import Settings
from ..strict import parse


@dataclass(frozen=True, slots=True)
class Stage:
    """`batch` pictures a step, `questions` about each. Only tensors that match `train` move."""

    name: str
    # cells: what is where, by cell. symbols: questions about cells that are told in place of seen. projector:
    # from what is seen to what would have been told. answers: questions about pictures.
    kind: Literal["cells", "symbols", "projector", "answers"]
    steps: int
    rate: float  # the highest learning rate, after the warm-up
    train: tuple[str, ...] = ("",)  # patterns of raw names, in fine-tuning of the run form's; "" is all
    batch: int = 32
    questions: int = 6
    mixture: dict[str, float] = field(default_factory=dict)  # what is asked -> weight; empty is all alike
    warmup: float = 0.03  # of all steps
    last_rate: float = 0.02  # of the highest, at the end of the cosine
    weight_decay: float = 0.02
    clip: float = 1.0
    statistics: Literal["stored", "batch"] = "stored"  # BatchNorm's
    image_size: int = 0  # 0: the model's
    pages: int = 0  # how many of a batch's pictures are full of letters
    alike: bool = False  # every kind of scene as often as any other
    disguise: float = 0.0  # of the scenes, in how many names are made up (see `disguise`); of kind symbols
    decay_steps: int = 0  # the cosine's length where it is not the stage's: one that ends early

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.questions) < 1 or not self.rate > 0:
            raise ConfigError(f"stage {self.name!r}: steps, batch, questions and rate must be positive")
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


@dataclass(frozen=True, slots=True)
class Start:
    """A model to fine-tune."""

    model: str  # a directory (from the recipe's own on), a hub id, or a short name
    revision: str | None = None
    dtype: str | None = None  # what it computes in; as stored, on the CPU float32


@dataclass(frozen=True, slots=True)
class Data:
    """What a model is fine-tuned on: `fastvlm_mlx.dataset` says in which forms."""

    path: str  # JSONL, from the recipe's directory on
    images: str | None = None  # where pictures' paths start from; where the file lies


@dataclass(frozen=True, slots=True)
class Lora(Settings):
    """Train an adapter instead of the model's own weights."""

    fuse: bool = False  # write the model with the adapter added, too


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    stages: tuple[Stage, ...]
    seed: int = 0
    model: Model | None = None
    start: Start | None = None
    data: Data | None = None
    lora: Lora | None = None
    save_every: int = 200
    log_every: int = 20

    def __post_init__(self) -> None:
        if min(self.save_every, self.log_every) < 1:
            raise ConfigError("save_every and log_every count steps; both must be positive")
        if self.model and self.start:
            raise ConfigError("[model] is for a fresh model and [start] for one to fine-tune; leave one out")
        if self.start and not self.data:
            raise ConfigError("[start] without [data]: nothing to learn from; add one")
        for name in ("data", "lora"):
            if getattr(self, name) and not self.start:
                raise ConfigError(f"[{name}] without [start]: say which model to fine-tune")


BUILT_IN = Path(__file__).parent / "recipes"


def find(name: str) -> Recipe:
    """A recipe by its path, or one that comes with the package by its name."""
    path = Path(name)
    if not path.exists() and (built_in := BUILT_IN / f"{name}.toml").exists():
        path = built_in
    return read(path)


def read(path: Path) -> Recipe:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a recipe, a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML ({error}); mend that line") from None
    recipe = parse(Recipe, raw, path, repair="mend the recipe")
    start, data, here = recipe.start, recipe.data, path.parent
    if start and (here / start.model).is_dir():
        start = replace(start, model=str((here / start.model).resolve()))
    if data:
        images = None if data.images is None else str(here / data.images)
        data = Data(str(here / data.path), images)
    return replace(recipe, start=start, data=data)
