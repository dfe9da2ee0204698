"""What a step of each kind is judged by: raw weights and a batch in; a loss and some measures out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx
import mlx.nn as nn

from fastvlm_mlx.config import ModelConfig
from fastvlm_mlx.convert.fuse import reference
from fastvlm_mlx.models.fastvlm import FastVLM
from fastvlm_mlx.train import form
from fastvlm_mlx.train.batches import Batch
from fastvlm_mlx.train.form import EMBEDDING_SCALE
from fastvlm_mlx.train.losses import Measures, answers, conversations, pixels

from . import disguise, scenes
from .recipe import Stage

Loss = Callable[[Stage, Mapping[str, mx.array], Batch], tuple[mx.array, Measures]]

HEADS = "cells"  # where the linear readings of cells are kept while the encoder is trained
SYMBOLS = "symbols"  # where the rows are kept that stand for cells while there is no encoder
EARLY = "stages.2.blocks"  # one position for 16 px: letters are told apart here first
_PLACES = ("row", "column")  # which every cell tells
EARLY_NAMES = ("shape", "colour", "glyphs")


def of_stage(config: ModelConfig) -> Loss:
    """The loss of any stage for a model of this configuration."""
    model = FastVLM(config)

    def loss(stage: Stage, raw: Mapping[str, mx.array], batch: Batch) -> tuple[mx.array, Measures]:
        targets = {name: mx.array(target) for name, target in batch.cells.items()}
        seen: dict[str, mx.array] = {}
        of_batch = stage.statistics == "batch"
        if stage.kind != "cells" or not of_batch:
            form.run_form(model, raw, config)
        if stage.kind == "symbols":
            return answers(model, symbols(raw, targets), batch.texts)
        if stage.kind == "answers" and not of_batch:
            return conversations(model, batch)
        shown = pixels(batch)
        outputs = reference.observe(raw, config, shown, seen) if of_batch else dict(model.vision.trace(shown))
        *_, features = outputs.values()
        match stage.kind:
            case "cells":
                value, measures = cells(outputs, raw, targets)
            case "projector":
                value, measures = projector(model, features, raw, targets)
            case "answers":
                value, measures = answers(model, model.projector(features.flatten(0, 2)), batch.texts)
        return value, {**measures, **seen}

    return loss


def cell_heads(features: int, early: int, width: int, key: mx.array) -> dict[str, mx.array]:
    """Fresh readings of every property from tokens and of some from the third stage; and fresh rows, as wide
    as a language model, for every value of every property."""
    sizes = {
        f"{HEADS}.{name}": (slots * classes, features) for name, (slots, classes) in scenes.HEADS.items()
    }
    sizes |= {f"{HEADS}.early.{name}": (scenes.HEADS[name][1] - 1, early) for name in EARLY_NAMES}
    told = {**scenes.HEADS, disguise.HEAD: disguise.SLOTS}
    rows = {f"{SYMBOLS}.{name}": (slots * classes, width) for name, (slots, classes) in told.items()}
    keys = iter(mx.random.split(key, len(sizes) + len(rows)))
    drawn = {f"{name}.weight": 0.01 * mx.random.normal(size, key=next(keys)) for name, size in sizes.items()}
    drawn |= {
        f"{name}.weight": EMBEDDING_SCALE * mx.random.normal(size, key=next(keys))
        for name, size in rows.items()
    }
    return drawn | {f"{name}.bias": mx.zeros(size[:1]) for name, size in sizes.items()}


def cells(
    outputs: Mapping[str, mx.array], raw: Mapping[str, mx.array], targets: Mapping[str, mx.array]
) -> tuple[mx.array, Measures]:
    """Each token says what its cell shows. The third stage does so early, the way from there to the letters
    being short: any of its positions in a slot may tell. Measures: what tokens get right of the shown."""
    (*_, features), early = outputs.values(), outputs[EARLY]
    total = mx.zeros(())
    measures: Measures = {}
    for name, target in targets.items():  # (P, places, slots)
        logits = _read(raw, f"{HEADS}.{name}", features).reshape(*target.shape, -1)
        total = total + _balanced(logits, target)
        shown = target > 0
        right = (logits.argmax(-1) == target) & shown
        measures[name] = right.sum() / mx.maximum(shown.sum(), 1)
        if name in EARLY_NAMES:
            told = _anywhere(
                _read(raw, f"{HEADS}.early.{name}", early), features.shape[1:3], target.shape[-1]
            )
            total = total + _balanced(told.reshape(*target.shape, -1), target)
    return total, measures


def symbols(raw: Mapping[str, mx.array], targets: Mapping[str, mx.array]) -> mx.array:
    """(P · cells, width): in place of what a projector gives, the sum of a row for all that a cell shows"""
    heads = {**scenes.HEADS, disguise.HEAD: disguise.SLOTS} if disguise.HEAD in targets else scenes.HEADS
    rows = []
    for name, (slots, classes) in heads.items():
        values = targets[name].flatten(0, 1)
        each = mx.take(raw[f"{SYMBOLS}.{name}.weight"], values + classes * mx.arange(slots), axis=0)
        rows.append((each * (values > 0)[..., None]).sum(1))
    return sum(rows, start=mx.zeros(()))


def projector(
    model: FastVLM, features: mx.array, raw: Mapping[str, mx.array], targets: Mapping[str, mx.array]
) -> tuple[mx.array, Measures]:
    """How far what the projector says is from the symbols for those cells, as a share of their variance: of
    cells that show something, and of empty ones, which are most and must not be all that counts."""
    wanted = mx.stop_gradient(symbols(raw, targets))
    error = ((model.projector(features.flatten(0, 2)) - wanted) ** 2).mean(-1)
    contents = [target for name, target in targets.items() if name not in _PLACES]
    shown = (mx.concatenate(contents, axis=-1) > 0).any(-1).flatten()
    shares = []
    for kind in (shown, ~shown):
        share = kind / mx.maximum(kind.sum(), 1)
        middle = (share[:, None] * wanted).sum(0)
        variance = (share[:, None] * (wanted - middle) ** 2).sum(0).mean()
        shares.append((share * error).sum() / mx.maximum(variance, 1e-6))
    return shares[0] + shares[1], {"explained": 1 - shares[0], "empty": 1 - shares[1]}


def _read(heads: Mapping[str, mx.array], name: str, x: mx.array) -> mx.array:
    return x @ heads[f"{name}.weight"].T + heads[f"{name}.bias"]


def _anywhere(logits: mx.array, cells: tuple[int, ...], slots: int) -> mx.array:
    """A class told at one place of a slot is told of the slot, the first class being that none is:
    (P, H, W, classes - 1) -> (P, h, w, slots, classes)"""
    (pictures, height, width, classes), (down, across) = logits.shape, cells
    parts = logits.reshape(pictures, down, height // down, across, slots, width // across // slots, classes)
    told = mx.logsumexp(parts, axis=(2, 5))
    return mx.concatenate([mx.zeros((*told.shape[:-1], 1)), told], axis=-1)


def _balanced(logits: mx.array, target: mx.array) -> mx.array:
    """What is shown weighs as much as all that is empty: most slots are, and saying so must not be enough."""
    losses = nn.losses.cross_entropy(logits, mx.maximum(target, 0))
    means = [(losses * kind).sum() / mx.maximum(kind.sum(), 1) for kind in (target > 0, target == 0)]
    return means[0] + means[1]
