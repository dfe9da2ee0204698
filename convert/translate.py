"""A directory in any known layout to the run form, lazily: nothing is read until it is evaluated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import checkpoint
from ..checkpoint import FusedWeights
from ..config import ModelConfig, read_json
from ..errors import CheckpointError
from ..tokenizer import Tokenizer
from . import foreign
from .fuse import fuse
from .layouts import APPLE_APP, Layout, RawWeights, detect, rename


@dataclass(frozen=True)
class Translated:
    layout: str
    config: ModelConfig
    weights: FusedWeights


def translate(directory: Path, tokenizer: Tokenizer | None = None) -> Translated:
    """Layout, configuration and fused weights; names and shapes are checked against the model.

    The tower comes out in float32, as it was folded; the rest as it was stored.
    """
    file = directory / checkpoint.CONFIG
    raw_config = read_json(file)
    foreign.check_model_type(raw_config, file)
    stored = checkpoint.lazy_weights(directory)
    layout = detect(stored, directory)
    tokenizer = tokenizer or Tokenizer.load(directory)
    return from_stored(layout, stored, raw_config, directory, tokenizer)


def from_stored(
    layout: Layout,
    stored: Mapping[str, mx.array],
    raw_config: Mapping[str, Any],
    directory: Path,
    tokenizer: Tokenizer,
) -> Translated:
    if layout is APPLE_APP:
        raise CheckpointError(
            f"{directory}: an export for Apple's app: its vision tower is a Core ML package, not tensors. "
            "Use the checkpoint it was made from, for example apple/FastVLM-0.5B"
        )
    file = directory / checkpoint.CONFIG
    raw = rename(layout, stored, directory)
    _check_modes(raw, raw_config, file)
    embedding = raw.get("language.embedding.weight")
    if embedding is None:
        raise CheckpointError(
            f"{directory}: the language model is missing ({layout.name} layout); download it again"
        )
    text = foreign.text_config(raw_config, file, tokenizer, embedding.shape[0], "language.head.weight" in raw)
    with mx.stream(mx.cpu):  # plain float32 on every machine, and no GPU kernels compiled for one use
        fused = fuse(raw, layout, text, directory)
    foreign.check_vision(raw_config, fused.vision, file)
    config = ModelConfig(
        vision=fused.vision,
        text=text,
        image=foreign.image_config(raw_config, directory),
        eos_token_ids=foreign.eos_token_ids(raw_config, directory, tokenizer),
        quantization=fused.quantization,
    )
    checkpoint.check(config, fused.weights, directory)
    return Translated(layout.name, config, fused.weights)


def _check_modes(raw: RawWeights, raw_config: Mapping[str, Any], file: Path) -> None:
    for name in raw:
        base = re.sub(r"\.scales$", "", name)
        if base != name and f"{base}.biases" not in raw:
            mode = (raw_config.get("quantization") or {}).get("mode", "unknown")
            raise CheckpointError(f"{file}: quantization mode {mode!r}; only 'affine' is read here")
