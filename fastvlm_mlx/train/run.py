"""From a recipe to a trained model: what is fresh is made, what was begun is continued."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..config import ModelConfig
from ..errors import ConfigError
from ..models.fastvlm import FastVLM
from ..prompt import render
from ..tokenizer import Tokenizer
from . import curve, export, form, losses, questions, scenes, vocabulary
from .recipe import Model, Recipe
from .sources import Scenes
from .state import Logged, Progress, State, resume, trim_log
from .trainer import Subject, train

_CORPUS = 20_000  # questions and answers that the tokenizer is learned from


def run(
    recipe: Recipe,
    out: Path,
    *,
    minutes: float | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Run what is left of the recipe, or as much as fits into `minutes`; says what came of it."""
    if recipe.model is None:
        raise ConfigError(f"recipe {recipe.name!r}: no [model] to start from; add one")
    folder = out / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        learn_vocabulary(recipe.seed, recipe.model, folder)
    config = fresh_config(recipe.model, Tokenizer.load(folder))
    state = resume(out, fingerprint(recipe)) or fresh(recipe, config, out)
    trim_log(out, [stage.name for stage in recipe.stages], state.progress)
    subject = Subject(FastVLM(config), config, lambda model, raw: form.run_form(model, raw, config))
    source = Scenes(recipe.seed, folder)
    told = Told(recipe, out, progress, say)
    until_s = None if minutes is None else 60 * minutes
    state = train(recipe, subject, state, source, workers=workers, until_s=until_s, on_log=told)
    if state.progress.stage < len(recipe.stages):
        return f"{out}: stopped at {told.place}; the same command goes on from there"
    model = out / "model"
    if mx.distributed.init().rank() == 0:
        export.write(state.params, config, folder, model)
    return f"{model}: the training form; next: fastvlm-mlx convert {model} -o {recipe.name}"


@dataclass
class Told:
    """Where a run stands, for its bar, its log lines and its curve."""

    recipe: Recipe
    out: Path
    progress: Callable[[int, int], None]
    say: Callable[[str], None]
    place: str = "its beginning"

    def __call__(self, logged: Logged) -> None:
        names = [stage.name for stage in self.recipe.stages]
        lengths = [stage.steps for stage in self.recipe.stages]
        self.progress(sum(lengths[: names.index(logged.stage)]) + logged.step, sum(lengths))
        self.place = f"stage {logged.stage}, step {logged.step} of {logged.steps}"
        measures = "  ".join(f"{name} {value:.3f}" for name, value in logged.measures.items())
        self.say(f"{self.place}: loss {logged.loss:.4f}  {measures}  ({logged.s_per_step:.2f} s a step)")
        curve.draw(self.out / "log.jsonl", self.out / "curve.png")


def learn_vocabulary(seed: int, model: Model, folder: Path) -> Tokenizer:
    """From generated questions and answers and the chat template. A word to be read is spelled letter by
    letter: one that training never showed must be as easy as any."""
    told = questions.corpus(np.random.default_rng(seed), _CORPUS)
    spelled = (re.sub(r"[A-Z]{2,}", " ", text) for text in told)
    frame = [render("?", 0)] * _CORPUS
    return vocabulary.learn(chain(spelled, frame), model.text.vocab_size, model.text.context, folder)


def fresh_config(model: Model, tokenizer: Tokenizer) -> ModelConfig:
    stops = tuple(id for token in vocabulary.SPECIAL if (id := tokenizer.id_of(token)) is not None)
    return ModelConfig(model.vision, model.text, model.image, tuple(sorted({stops[0], stops[-1]})))


def fresh(recipe: Recipe, config: ModelConfig, out: Path) -> State:
    assert recipe.model
    key = mx.random.key(recipe.seed)
    params = dict(form.initial(config, key, layer_scale=recipe.model.layer_scale))
    vision = config.vision
    params |= losses.cell_heads(scenes.HEADS, vision.feature_dim, vision.dims[2], mx.random.split(key)[0])
    return State(out, fingerprint(recipe), Progress(0, 0), params)


def fingerprint(recipe: Recipe) -> str:
    """Stages may be added or changed ahead of a run, the model and the seed not."""
    told = repr((recipe.name, recipe.seed, recipe.model and dataclasses.astuple(recipe.model)))
    return hashlib.sha256(told.encode()).hexdigest()[:16]
