"""`convert`: a checkpoint in any layout to a new canonical directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from .. import __version__, atomic, checkpoint
from ..checkpoint import CONFIG, FusedWeights
from ..config import ModelConfig, from_json, is_canonical, read_json
from ..errors import CheckpointError
from ..tokenizer import Tokenizer
from . import card
from .quantize import Recipe, bits_per_weight, quantize
from .read.translate import translate
from .verify import Comparison, compare


@dataclass(frozen=True)
class Converted:
    destination: Path
    layout: str
    config: ModelConfig
    bytes: int
    bits_per_weight: float
    remarks: tuple[str, ...]
    licence: str | None  # the notice to show, where a licence came along
    comparison: Comparison | None


def convert(
    source: Path,
    destination: Path,
    *,
    recipe: Recipe | None = None,
    group_size: int = 64,
    dtype: mx.Dtype | None = None,
    overwrite: bool = False,
    verify: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Read, fuse, cast, quantize, write: one tensor in memory at a time, the result whole or absent.

    `dtype` None keeps the source's. The source is only read.
    """
    atomic.refuse(destination, overwrite)
    atomic.refuse_overlap(destination, source)
    if not source.is_dir():
        raise CheckpointError(f"{source}: not a directory; give a model directory or a hub id")
    tokenizer = Tokenizer.load(source)
    layout, config, weights = read(source, tokenizer)
    weights = checkpoint.cast(weights, dtype or checkpoint.stored_dtype(weights))
    remarks: tuple[str, ...] = ()
    if recipe is not None:
        quantized = quantize(config, weights, recipe, group_size)
        config, weights, remarks = quantized.config, quantized.weights, quantized.remarks
    total, bits = sum(array.nbytes for array in weights.values()), bits_per_weight(config, weights)
    facts = card.Facts(
        source=source.name,
        layout=layout,
        version=__version__,
        dtype=str(checkpoint.stored_dtype(weights)).removeprefix("mlx.core."),
        recipe=recipe.name if recipe else None,
        bytes=total,
        bits_per_weight=bits,
        remarks=remarks,
    )
    licences = card.licences(source)
    notice = card.notice(licences)
    comparison: Comparison | None = None

    def finish(folder: Path) -> None:
        nonlocal comparison
        comparison = compare(source, folder) if verify else None
        (folder / "README.md").write_text(card.render(facts, notice, comparison), encoding="utf-8")

    checkpoint.save(
        destination, config, weights, tokenizer, licences, finish, overwrite=overwrite, progress=progress
    )
    return Converted(destination, layout, config, total, bits, remarks, notice, comparison)


def read(source: Path, tokenizer: Tokenizer) -> tuple[str, ModelConfig, FusedWeights]:
    """Layout, configuration and the run form's weights as stored; no tensor is read yet."""
    raw = read_json(source / CONFIG)
    if is_canonical(raw):
        config, weights = from_json(raw, source / CONFIG), FusedWeights(checkpoint.lazy_weights(source))
        checkpoint.check(config, weights, source)
        return "fastvlm-mlx", config, weights
    translated = translate(source, tokenizer)
    return translated.layout, translated.config, translated.weights
