"""Features of the last stage, and of several: python benchmarks/multi_scale.py [--steps N] [--only NAME …]

The `tiny` recipe's first stage, in which an encoder learns to say what is where, for N steps with the same
seed and the same pictures: with the last stage's features alone, and with stages 2 to 4 beside them, averaged
or pooled by learned depthwise convolutions. Then how much of what held-out pictures show tokens tell right,
and sizes and times of tower and projector together, in turn, medians. Stopped and called again, it goes on.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fastvlm_mlx.blas import keep_freed_memory  # isort: skip  - prefers OpenBLAS before mlx loads
import mlx.core as mx
import numpy as np

from fastvlm_mlx.bench import cost
from fastvlm_mlx.bench.machine import this_machine
from fastvlm_mlx.bench.table import Table, ms
from fastvlm_mlx.config import ModelConfig, MultiScaleConfig
from fastvlm_mlx.models.fastvlm import FastVLM
from fastvlm_mlx.train import form
from fastvlm_mlx.train.state import Logged, Progress, State, make_folder, resume, trim_log
from fastvlm_mlx.train.trainer import train
from tiny import composing, drawing, losses, scenes
from tiny import recipe as recipes
from tiny.recipe import Recipe
from tiny.sources import Scenes
from tiny.train import fingerprint

STAGES = (2, 3, 4)
VARIANTS: dict[str, MultiScaleConfig | None] = {
    "off": None,
    "average": MultiScaleConfig(STAGES, "average"),
    "depthwise": MultiScaleConfig(STAGES, "depthwise"),
}
TOLD = ("shape", "colour", "glyphs")
HEADS = ("", *(f"{name}, %" for name in TOLD), "features", "parameters", "MMACs", "ms", "times as long")
BATCH, ROUNDS = 20, 40


@dataclass(frozen=True)
class Trained:
    config: ModelConfig
    model: FastVLM
    params: dict[str, mx.array]


def planned(variant: str, steps: int) -> Recipe:
    tiny = recipes.read()
    vision = dataclasses.replace(tiny.model.vision, multi_scale=VARIANTS[variant])
    stage = dataclasses.replace(tiny.stages[0], steps=steps)
    model = dataclasses.replace(tiny.model, vision=vision)
    return dataclasses.replace(tiny, model=model, stages=(stage,), save_every=50)


def trained(variant: str, steps: int, out: Path, workers: int) -> Trained:
    recipe = planned(variant, steps)
    sizes = recipe.model
    config = ModelConfig(sizes.vision, sizes.text, sizes.image)
    make_folder(out)
    state = resume(out, fingerprint(recipe)) or fresh(recipe, config, out)
    trim_log(out, [stage.name for stage in recipe.stages], state.progress)
    model = FastVLM(config)
    source = Scenes(recipe.seed, out)  # cells are told without a tokenizer

    def tell(logged: Logged) -> None:
        right = "  ".join(f"{name} {logged.measures[name]:.3f}" for name in TOLD)
        place = f"{variant}, step {logged.step} of {logged.steps}"
        sys.stderr.write(f"{place}: loss {logged.loss:.3f}  {right}  ({logged.s_per_step:.2f} s a step)\n")

    params = dict(train(recipe, losses.of_stage(config), state, source, workers=workers, on_log=tell).params)
    form.run_form(model, params, config)
    mx.eval(model.parameters())
    return Trained(config, model, params)


def fresh(recipe: Recipe, config: ModelConfig, out: Path) -> State:
    key = mx.random.key(recipe.seed)
    params = dict(form.initial(config, key, layer_scale=recipe.model.layer_scale))
    vision, width = config.vision, config.text.hidden_size
    params |= losses.cell_heads(vision.feature_dim, vision.dims[2], width, mx.random.split(key)[0])
    return State(out, fingerprint(recipe), Progress(0, 0), params)


@dataclass(frozen=True)
class HeldOut:
    pixels: np.ndarray
    targets: dict[str, mx.array]

    @classmethod
    def draw(cls, seed: int, count: int) -> HeldOut:
        """Of every kind as many, with words, numbers and combinations that training never shows."""
        shown = [composing.scene(seed, index, "test", scenes.ALIKE) for index in range(count)]
        cells = [scenes.cells(scene) for scene in shown]
        targets = {
            name: mx.array(
                np.stack([getattr(cell, name).reshape(-1, slots) for cell in cells]).astype(np.int32)
            )
            for name, (slots, _) in scenes.HEADS.items()
        }
        return cls(np.stack([drawing.draw(scene) for scene in shown]), targets)

    def right(self, of: Trained) -> dict[str, float]:
        """The share of what is shown that tokens name."""
        parts: dict[str, list[mx.array]] = {}
        for first in range(0, len(self.pixels), BATCH):
            pixels = mx.array(self.pixels[first : first + BATCH]).astype(mx.float32) / 255
            trace = dict(of.model.vision.trace(pixels))
            *_, features = trace.values()
            for name, array in ((losses.EARLY, trace[losses.EARLY]), ("features", features)):
                mx.eval(array)
                parts.setdefault(name, []).append(array)
        outputs = {name: mx.concatenate(arrays) for name, arrays in parts.items()}  # the features last
        _, measures = losses.cells(outputs, of.params, self.targets)
        return {name: measures[name].item() for name in TOLD}


def timed(models: dict[str, Trained], size: int) -> dict[str, float]:
    pixels = mx.random.uniform(shape=(1, size, size, 3), key=mx.random.key(0))
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(ROUNDS + 1):
        for name, of in models.items():
            began = time.perf_counter()
            mx.eval(of.model.encode_image(pixels))
            if round_:  # the first prepares
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--pictures", type=int, default=500, help="held-out ones to be read")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw training pictures ahead")
    parser.add_argument("--out", type=Path, default=Path(".multi-scale"), help="where the runs are kept")
    asked = parser.parse_args()
    keep_freed_memory()
    models = {
        name: trained(name, asked.steps, asked.out / f"{name}-{asked.steps}", asked.workers)
        for name in asked.only
    }
    held_out = HeldOut.draw(recipes.read().seed, asked.pictures)
    size = scenes.SIDE
    took = timed(models, size)
    rows = []
    for name, of in models.items():
        right = held_out.right(of)
        tokens = cost.tokens(size)
        parts = (*cost.vision(of.config.vision, size).values(), cost.projector(of.config, tokens))
        whole = cost.total(op for ops in parts for op in ops)
        told = (f"{of.config.vision.feature_dim}", f"{whole.weights:,}", f"{whole.macs / 1e6:.2f}")
        ratio = f"{took[name] / took[asked.only[0]]:.3f}"
        rows.append((name, *(f"{100 * right[key]:.1f}" for key in TOLD), *told, ms(took[name]), ratio))
    print(f"{this_machine().words}\n")
    shown = ", ".join(f"{int((held_out.targets[name] > 0).sum().item())} {name}" for name in TOLD)
    note = f"{asked.steps} steps, one run each; {asked.pictures} held-out pictures show {shown}. {size} px."
    print(Table("", HEADS, rows, (note,)).as_markdown())


if __name__ == "__main__":
    main()
