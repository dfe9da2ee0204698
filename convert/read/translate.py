"""A directory in any known layout to the run form, lazily: nothing is read until it is evaluated."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...config import ModelConfig, Quantization, TextConfig, VisionConfig, read_json
from ...errors import CheckpointError
from ...inputs.tokenizer import Tokenizer
from ...weights import checkpoint
from ...weights.checkpoint import FusedWeights
from ..fuse.fuse import fuse
from . import source_config, tensor_shapes
from .tensor_names import APPLE_APP, Layout, RawWeights, detect, rename


@dataclass(frozen=True)
class Translated:
    layout: str
    config: ModelConfig
    weights: FusedWeights


@dataclass(frozen=True)
class Source:
    """A checkpoint as it is stored, found to be whole: nothing is fused yet."""

    layout: Layout
    config: ModelConfig  # without what is quantized
    raw: RawWeights
    packed: dict[str, Quantization]  # by raw path


def translate(directory: Path, tokenizer: Tokenizer | None = None) -> Translated:
    """Layout, configuration and fused weights; names and shapes are checked against the model.

    The tower comes out in float32, as it was folded; the rest as it was stored.
    """
    return from_source(read_source(directory, tokenizer))


def from_stored(
    layout: Layout,
    stored: Mapping[str, mx.array],
    raw_config: Mapping[str, Any],
    directory: Path,
    tokenizer: Tokenizer,
) -> Translated:
    return from_source(source_of(layout, stored, raw_config, directory, tokenizer))


def read_source(directory: Path, tokenizer: Tokenizer | None = None) -> Source:
    file = directory / checkpoint.CONFIG
    raw_config = read_json(file)
    source_config.check_model_type(raw_config, file)
    stored = checkpoint.lazy_weights(directory)
    layout = detect(stored, directory)
    tokenizer = tokenizer or Tokenizer.load(directory)
    return source_of(layout, stored, raw_config, directory, tokenizer)


def source_of(
    layout: Layout,
    stored: Mapping[str, mx.array],
    raw_config: Mapping[str, Any],
    directory: Path,
    tokenizer: Tokenizer,
) -> Source:
    if layout is APPLE_APP:
        raise CheckpointError(
            f"{directory}: an export for Apple's app: its vision tower is a Core ML package, not tensors. "
            "Use the checkpoint it was made from, for example apple/FastVLM-0.5B"
        )
    file = directory / checkpoint.CONFIG
    raw = rename(layout, stored, directory)
    _check_modes(raw, raw_config, file)
    shapes = {name: tuple(array.shape) for name, array in raw.items()}
    rows = shapes.get("language.embedding.weight", ())
    vision = tensor_shapes.tower(shapes, source_config.multi_scale(raw_config, file))
    if vision is None or len(rows) != 2:
        raise CheckpointError(
            f"{directory}: the {'language model' if vision else 'vision tower'} is missing ({layout.name} "
            "layout); use the original checkpoint, for example apple/FastVLM-0.5B"
        )
    text = source_config.text_config(raw_config, file, tokenizer, rows[0], "language.head.weight" in raw)
    source_config.check_vision(raw_config, vision, file)
    packed = _check(layout, shapes, vision, text, raw_config, directory)
    config = ModelConfig(
        vision=vision,
        text=text,
        image=source_config.image_config(raw_config, directory),
        eos_token_ids=source_config.eos_token_ids(raw_config, directory, tokenizer),
    )
    return Source(layout, config, raw, packed)


def from_source(source: Source) -> Translated:
    config = source.config
    with mx.stream(mx.cpu):  # where float64 is, and no GPU kernels are compiled for one use
        weights, quantization = fuse(source.raw, config.vision, config.text, source.packed)
    return Translated(source.layout.name, dataclasses.replace(config, quantization=quantization), weights)


def _check(
    layout: Layout,
    found: tensor_shapes.Shapes,
    vision: VisionConfig,
    text: TextConfig,
    raw_config: Mapping[str, Any],
    where: Path,
) -> dict[str, Quantization]:
    """Every tensor there, in its shape, and none besides; says how the quantized ones were packed."""
    expected = tensor_shapes.raw_form(vision, vision.feature_dim, text, found)
    packed = tensor_shapes.pack(
        expected, found, source_config.quantization(raw_config, where / checkpoint.CONFIG)
    )
    different = tensor_shapes.differences(found, expected, tied=text.tied)
    for names, what in (
        (different.missing, "is missing; the checkpoint is incomplete"),
        (different.extra, "has no place in the model"),
    ):
        if names:
            raise CheckpointError(
                f"{where}: tensor {layout.stored_name(names[0])!r} {what} ({len(names)} such); "
                f"run `fastvlm-mlx doctor {where}`"
            )
    if different.wrong:
        name = different.wrong[0]
        raise CheckpointError(
            f"{where}: tensor {layout.stored_name(name)!r} has shape {found[name]} where {expected[name]} "
            f"belongs (height and width before channels); run `fastvlm-mlx doctor {where}`"
        )
    return packed


def _check_modes(raw: RawWeights, raw_config: Mapping[str, Any], file: Path) -> None:
    for name in raw:
        base = re.sub(r"\.scales$", "", name)
        if base != name and f"{base}.biases" not in raw:
            mode = source_config.quantization(raw_config, file).get("mode", "unknown")
            raise CheckpointError(
                f"{file}: quantization mode {mode!r}, and only 'affine' is read here; quantize the original "
                "checkpoint again in that mode"
            )
