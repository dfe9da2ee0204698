"""Recipes as data: ordered rows of (path pattern, bits or None for dense); the first match decides."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..config import GROUP_SIZES, ModelConfig, Quantization
from ..errors import ConfigError
from ..models.fastvlm import FastVLM
from ..weights.checkpoint import FusedWeights

_LANGUAGE = r"language\."
_PICTURES = r"(vision|projector)\."


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    rows: tuple[tuple[str, int | None], ...]

    def bits(self, path: str) -> int | None:
        return next((bits for pattern, bits in self.rows if re.match(pattern, path)), None)

    def with_pictures(self) -> Recipe:
        """The same, with the tower's and projector's matrices in the most bits it uses."""
        most = max(bits for _, bits in self.rows if bits)
        return Recipe(f"{self.name}+vision", ((_PICTURES, most), *self.rows))


def uniform(bits: int) -> Recipe:
    return Recipe(f"{bits}bit", ((_LANGUAGE, bits),))


RECIPES: dict[str, Recipe] = {
    "4bit": uniform(4),
    "8bit": uniform(8),
    # Attention, the way out of each MLP and the vocabulary suffer most from 4 bits and are the smaller part.
    "mixed-4-8": Recipe(
        "mixed-4-8",
        (
            (r"language\.(embedding|head)", 8),
            (r"language\.layers\.\d+\.(attention|mlp\.down)", 8),
            (_LANGUAGE, 4),
        ),
    ),
}


@dataclass(frozen=True)
class Quantized:
    config: ModelConfig
    weights: FusedWeights
    remarks: tuple[str, ...]  # what could not be done as asked, a line each


def quantize(config: ModelConfig, weights: FusedWeights, recipe: Recipe, group_size: int) -> Quantized:
    """Lazily. A width that `group_size` does not divide takes the largest smaller group, or stays dense."""
    if config.quantization:
        held = sorted({how.bits for how in config.quantization.values()})
        raise ConfigError(
            f"the source is quantized already ({', '.join(map(str, held))} bit), and quantizing twice loses "
            "more than it says; start from the original, or leave -q out to keep it as it is"
        )
    plan: dict[str, Quantization] = {}
    misfits: Counter[tuple[int, int | None]] = Counter()  # (width, group) of what is not as asked
    for path, module in FastVLM(config).named_modules():
        bits = recipe.bits(path)
        if bits is None or not isinstance(module, (nn.Linear, nn.Embedding)):
            continue
        width = weights[f"{path}.weight"].shape[-1]
        group = next(
            (g for g in sorted(GROUP_SIZES, reverse=True) if g <= group_size and width % g == 0), None
        )
        if group != group_size:
            misfits[width, group] += 1
        if group is not None:
            plan[path] = Quantization(bits, group)
    ordered: dict[str, mx.array] = {}
    for name, array in weights.items():
        path, _, part = name.rpartition(".")
        if part == "weight" and path in plan:
            parts = mx.quantize(array, plan[path].group_size, plan[path].bits)
            ordered |= {
                f"{path}.{key}": a for key, a in zip(("weight", "scales", "biases"), parts, strict=True)
            }
        else:
            ordered[name] = array
    remarks = tuple(
        f"{count} matrices of {width} inputs: "
        + (
            f"groups of {group}, as {group_size} does not divide"
            if group
            else "dense, as no group size divides"
        )
        + f" {width}"
        for (width, group), count in sorted(misfits.items(), key=str)
    )
    return Quantized(dataclasses.replace(config, quantization=plan), FusedWeights(ordered), remarks)


def bits_per_weight(config: ModelConfig, weights: FusedWeights) -> float:
    """Of the language model: stored bits over parameters, scales included."""
    parts = {name: array for name, array in weights.items() if name.startswith("language.")}
    stored = sum(array.nbytes for array in parts.values()) * 8
    count = 0
    for name, array in parts.items():
        path, _, part = name.rpartition(".")
        how = config.quantization.get(path)
        if how is None:
            count += array.size
        elif part == "weight":
            count += array.size * 32 // how.bits
    return stored / count
