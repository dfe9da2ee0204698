"""The golden model with earlier stages beside its features; what is new in it has random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import mlx.core as mx
from command import MODEL

from fastvlm_mlx.config import MultiScaleConfig
from fastvlm_mlx.convert.run import read
from fastvlm_mlx.inputs.tokenizer import Tokenizer
from fastvlm_mlx.models.fastvlm import FastVLM
from fastvlm_mlx.weights import checkpoint

STAGES = (2, 3, 4)


def write(to: Path, pooling: Literal["average", "depthwise"], stages: tuple[int, ...] = STAGES) -> Path:
    """As the canonical directory."""
    tokenizer = Tokenizer.load(MODEL)
    _, config, weights = read(MODEL, tokenizer)
    vision = dataclasses.replace(config.vision, multi_scale=MultiScaleConfig(stages, pooling))
    config = dataclasses.replace(config, vision=vision)
    filled = {name: array.astype(mx.float32) for name, array in weights.items()}
    for number, (name, array) in enumerate(sorted(checkpoint.parameters(FastVLM(config)).items())):
        if name not in filled or filled[name].shape != array.shape:
            filled[name] = 0.1 * mx.random.normal(array.shape, key=mx.random.key(number))
    checkpoint.save(to, config, checkpoint.FusedWeights(filled), tokenizer, {})
    return to
