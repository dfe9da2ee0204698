"""From the recipe to a trained model: what is fresh is made, what was begun is continued.

python -m tiny.train -o runs/tiny --processes 2
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import mlx.core as mx
import numpy as np

from fastvlm_mlx.blas import keep_freed_memory
from fastvlm_mlx.config import ModelConfig
from fastvlm_mlx.errors import ConfigError
from fastvlm_mlx.inputs.prompt import render
from fastvlm_mlx.inputs.tokenizer import Tokenizer
from fastvlm_mlx.terminal import progress as progress_bar
from fastvlm_mlx.train import export, form, ranks
from fastvlm_mlx.train.report import Report
from fastvlm_mlx.train.state import Progress, State, make_folder, once, resume, trim_log
from fastvlm_mlx.train.trainer import train

from . import losses, questions, scenes, vocabulary
from . import recipe as recipes
from .recipe import Model, Recipe
from .sources import Scenes

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
    _check(recipe, recipe.model)
    model, folder = recipe.model, out / "tokenizer"
    make_folder(out)
    once(lambda: folder.exists() or learn_vocabulary(recipe.seed, model, folder))
    tokenizer = Tokenizer.load(folder)
    config = fresh_config(model, tokenizer)
    state = resume(out, fingerprint(recipe)) or fresh(recipe, config, tokenizer, out)
    once(lambda: trim_log(out, [stage.name for stage in recipe.stages], state.progress))
    source = Scenes(recipe.seed, folder)
    report = Report(recipe, out, progress, say)
    until_s = None if minutes is None else 60 * minutes
    done = train(
        recipe, losses.of_stage(config), state, source, workers=workers, until_s=until_s, on_log=report
    )
    if done.progress.stage < len(recipe.stages):
        return f"{out}: stopped at {report.place}; the same command goes on from there"
    written = out / "model"
    once(lambda: export.write(done.params, config, folder, written))
    return f"{written}: the training form; next: fastvlm-mlx convert {written} -o {recipe.name}"


def _check(recipe: Recipe, model: Model) -> None:
    """What only drawn scenes ask of a recipe."""
    if model.image.size != scenes.SIDE:
        raise ConfigError(f"recipe {recipe.name!r}: drawn scenes have [model.image] size = {scenes.SIDE}")
    for stage in recipe.stages:
        if stage.image_size not in (0, scenes.SIDE):
            raise ConfigError(f"stage {stage.name!r}: drawn scenes have one size; leave image_size out")
        names = (*questions.CATEGORIES, *questions.FINER)
        if unknown := sorted(stage.mixture.keys() - set(names)):
            known = ", ".join(names)
            raise ConfigError(
                f"stage {stage.name!r}: no category {unknown[0]!r} in scenes; there are {known}"
            )
        if stage.mixture and not any(stage.mixture.get(name, 0) > 0 for name in questions.OF_EVERY_SCENE):
            always = ", ".join(questions.OF_EVERY_SCENE)
            raise ConfigError(
                f"stage {stage.name!r}: its mixture may find nothing to ask of a scene; add one of {always}"
            )


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


def fresh(recipe: Recipe, config: ModelConfig, tokenizer: Tokenizer, out: Path) -> State:
    key = mx.random.key(recipe.seed)
    params = dict(form.initial(config, key, layer_scale=recipe.model.layer_scale))
    vision = config.vision
    width = config.text.hidden_size
    params |= losses.cell_heads(vision.feature_dim, vision.dims[2], width, mx.random.split(key)[0])
    params |= _named(params, tokenizer)
    return State(out, fingerprint(recipe), Progress(0, 0), params)


def _named(params: Mapping[str, mx.array], tokenizer: Tokenizer) -> dict[str, mx.array]:
    """The symbols of what has a name begin near its id's row."""
    rows = params["language.embedding.weight"]
    named = {}
    for head, words in scenes.SAID.items():
        name, (slots, classes) = f"{losses.SYMBOLS}.{head}.weight", scenes.HEADS[head]
        ids = [tokenizer.encode(word if head == "glyphs" else f" {word}")[0] for word in words]
        known = mx.concatenate([mx.zeros_like(rows[:1]), rows[mx.array(ids)]])
        assert len(known) == classes
        named[name] = params[name] + mx.tile(known, (slots, 1))
    return named


def fingerprint(recipe: Recipe) -> str:
    """Stages may be added or changed ahead of a run, the model and the seed not."""
    told = repr((recipe.name, recipe.seed, _told(recipe.model)))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _told(model: Model) -> tuple[object, ...]:
    """What came later and is off is left out: a run that began without it goes on."""
    vision, *rest = dataclasses.astuple(model)
    return (vision if model.vision.multi_scale else vision[:-1], *rest)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tiny.train", description="Train the built-in model.")
    parser.add_argument("recipe", type=Path, nargs="?", default=recipes.BUILT_IN)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="the run's folder; one begun is continued"
    )
    parser.add_argument("--minutes", type=float, help="save and stop after N minutes")
    parser.add_argument(
        "--processes", type=int, default=1, help="divide every batch between N processes, one a core"
    )
    parser.add_argument("--workers", type=int, default=0, help="draw pictures ahead in N processes: for GPUs")
    options = parser.parse_args(arguments)
    if options.processes > 1 and not ranks.is_one():
        sys.exit(ranks.supervise(options.processes, "tiny.train"))
    keep_freed_memory()
    planned = recipes.read(options.recipe)
    with progress_bar.bar(f"training {planned.name}", "steps") as advance:
        done = run(
            planned,
            options.output,
            minutes=options.minutes,
            workers=options.workers,
            progress=advance,
            say=lambda line: print(line, file=sys.stderr),
        )
    print(done, file=sys.stderr)


if __name__ == "__main__":
    main()
